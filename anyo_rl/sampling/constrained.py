"""Constrained decoding: after the marker, a teacher can write nothing but items of the catalog.

What is sampled so is the distribution that `anyo_rl.ranking.distribution` computes: the next token's renormalised over
the children of the prefix tree's node.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PretrainedConfig

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.ranking.policy import causal_lm, inference
from anyo_rl.sampling.transformers import left_padded, own_settings_aside
from anyo_rl.tokens import Tokens

LEFT, FREE = -1, -2  # in place of a node: the item is written or was never one; no marker yet


class CatalogConstraint(LogitsProcessor):
    """Holds what comes after the marker to the catalog, for one call of `generate`.

    Before the marker everything is free, unless `max_reasoning_tokens` is set. From the marker on only the children
    of the tree's node are possible, with their log-probabilities among themselves: beams add these up. After an item
    only end-of-sequence is.

    Args:
        tree: the catalog's prefix tree.
        tokens: the tokenizer that it was made with, and the marker.
        prompt_width: width W of the padded prompts. A marker inside a prompt is no marker, except as the last token:
            then the item comes at once.
        max_reasoning_tokens: when set, every completion gets an item: the marker is forced after this many tokens,
            and the end of the sequence cannot come before it. The item takes up to `tree.depth.max()` tokens more.
    """

    def __init__(
        self, tree: PrefixTree, tokens: Tokens, prompt_width: int, max_reasoning_tokens: int | None = None
    ) -> None:
        self.tree = tree
        self.marker_id, self.eos_id = tokens.marker_id, tokens.eos_id
        self.start = prompt_width - 1
        self.max_reasoning_tokens = max_reasoning_tokens
        self._seen: np.ndarray | None = None
        self._nodes: np.ndarray | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(R, V) scores of the next token, those that are not possible at minus infinity.

        Args:
            input_ids: (R, T) prompts and what was written so far.
            scores: (R, V) logits or log-probabilities.
        """
        nodes_R = self._walk(input_ids[:, self.start :].cpu().numpy())
        if self.max_reasoning_tokens is None and (nodes_R == FREE).all():
            return scores
        n_children_R = np.where(nodes_R >= 0, self.tree.child_start[nodes_R + 1] - self.tree.child_start[nodes_R], 0)

        def rows(where_R: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.flatnonzero(where_R)).to(scores.device)

        limited = torch.full_like(scores, -torch.inf)
        limited[rows((nodes_R != FREE) & (n_children_R == 0)), self.eos_id] = 0.0
        self._put_reasoning(scores, limited, rows(nodes_R == FREE), input_ids.shape[1] - 1 - self.start)
        self._put_first(scores, limited, rows(nodes_R == 0))
        self._put_children(scores, limited, np.where(nodes_R > 0, nodes_R, 0), np.where(nodes_R > 0, n_children_R, 0))
        return limited

    def _put_reasoning(self, scores: torch.Tensor, limited: torch.Tensor, rows: torch.Tensor, n_written: int) -> None:
        """Before the marker: everything, or under a budget everything but the end, and at last the marker alone."""
        if len(rows) == 0:
            return
        if self.max_reasoning_tokens is None:
            limited[rows] = scores[rows]
        elif n_written >= self.max_reasoning_tokens:
            limited[rows, self.marker_id] = 0.0
        else:
            going_on = scores[rows]
            going_on[:, self.eos_id] = -torch.inf
            limited[rows] = going_on.log_softmax(-1)

    def _put_first(self, scores: torch.Tensor, limited: torch.Tensor, rows: torch.Tensor) -> None:
        """At the root, where all rows come by and have the most children: the same columns for all of them."""
        if len(rows) == 0:
            return
        tokens = torch.from_numpy(self.tree.token[self.tree.children(0)]).to(scores.device)
        log_probs = scores[rows].index_select(1, tokens).log_softmax(-1)
        limited[rows] = limited[rows].index_copy(1, tokens.long(), log_probs)

    def _put_children(
        self, scores: torch.Tensor, limited: torch.Tensor, nodes_R: np.ndarray, n_children_R: np.ndarray
    ) -> None:
        """Further down: the children of each row's node, as E (row, token) pairs one row after the other."""
        row_E = np.repeat(np.arange(len(nodes_R)), n_children_R)
        place_E = np.arange(len(row_E)) - np.repeat(np.cumsum(n_children_R) - n_children_R, n_children_R)
        token_E = self.tree.token[self.tree.child_start[nodes_R][row_E] + place_E]
        row, token = torch.from_numpy(row_E).to(scores.device), torch.from_numpy(token_E).to(scores.device)
        chosen = scores[row, token]
        highest = chosen.new_full((len(scores),), -torch.inf).scatter_reduce(0, row, chosen, "amax")
        shifted = chosen - highest[row]
        total = torch.zeros_like(highest).scatter_add(0, row, shifted.exp())
        limited[row, token] = shifted - total.log()[row]

    def _walk(self, written_R_T: np.ndarray) -> np.ndarray:
        """(R,) the node that each row is at, given everything from the prompt's last token on."""
        nodes = self._nodes_before(written_R_T[:, :-1])
        if nodes is None:
            nodes = self._walk_from_marker(written_R_T)
        else:
            last_R = written_R_T[:, -1]
            marked_R = np.where(last_R == self.marker_id, 0, FREE)
            nodes = np.where(nodes == FREE, marked_R, self.tree.step(nodes, last_R))
        self._seen, self._nodes = written_R_T.copy(), nodes
        return nodes

    def _nodes_before(self, before_R_T: np.ndarray) -> np.ndarray | None:
        """(R,) the nodes at the last call, where beams have moved to since; `None` when a row is new."""
        if self._seen is None or self._nodes is None or before_R_T.shape[1] != self._seen.shape[1]:
            return None
        if np.array_equal(before_R_T, self._seen):
            return self._nodes
        place = {row.tobytes(): i for i, row in enumerate(self._seen)}
        moved_R = [place.get(row.tobytes(), -1) for row in before_R_T]
        return None if -1 in moved_R else self._nodes[moved_R]

    def _walk_from_marker(self, written_R_T: np.ndarray) -> np.ndarray:
        is_marker_R_T = written_R_T == self.marker_id
        marked_R, marker_R = is_marker_R_T.any(1), is_marker_R_T.argmax(1)
        nodes = np.where(marked_R, 0, FREE)
        width = written_R_T.shape[1]
        for offset in range(1, width - int(marker_R[marked_R].min(initial=width - 1))):
            rows = np.flatnonzero(marked_R & (marker_R + offset < width))
            nodes[rows] = self.tree.step(nodes[rows], written_R_T[rows, marker_R[rows] + offset])
        return nodes


def decode_items(
    model: nn.Module,
    catalog: Catalog,
    tokens: Tokens,
    contexts_B: Sequence[Sequence[int]],
    *,
    mode: Literal["greedy", "sample", "beam"],
    n: int = 1,
    n_beams: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
) -> list[list[str]]:
    """Lets the teacher write items after contexts that end with the marker; whatever it prefers, they are items.

    Args:
        model: the teacher; wrappers are seen through.
        catalog: the catalog, built with the model's tokenizer.
        tokens: that tokenizer and its marker.
        contexts_B: token ids: prompt, reasoning and marker.
        mode: `greedy` takes the best token at each node, `sample` draws from the constrained policy, `beam` keeps the
            `n_beams` best beginnings, by their log-probability with no length penalty. Neither greedy nor narrow
            beams are sure to find the best item: a `DistributionRanker` is.
        n: items of each context: draws, or the best beams. Greedy gives one.
        n_beams: width of the beam, at least n; n when left out.
        temperature: of the draws, above 0.
        seed: of the draws, which also depend on how contexts fall into batches.
        batch_size: sequences decoded at once.

    Returns:
        B lists of item ids: n draws, or up to n different items, best first.

    Raises:
        ValueError: a context does not end with the marker or does not fit the model, the model knows fewer tokens
            than the catalog, or n, n_beams and temperature do not fit the mode.
    """
    n_beams = (n_beams or n) if mode == "beam" else 1
    if mode not in ("greedy", "sample", "beam") or n < 1 or temperature <= 0:
        raise ValueError(
            f"mode {mode!r}, n {n}, temperature {temperature}: expected greedy, sample or beam, and above 0"
        )
    if (mode == "greedy" and n > 1) or (mode == "beam" and n > n_beams):
        raise ValueError(f"{mode} cannot give {n} items with {n_beams} beams; take more beams, or sample")
    policy = causal_lm(model)
    _check_fit(policy.config.get_text_config(), catalog.tree, tokens, contexts_B)
    draws = {"temperature": float(temperature), "top_k": 0, "top_p": 1.0} if mode == "sample" else {}
    beams = {"num_beams": n_beams, "length_penalty": 0.0, "early_stopping": "never"} if mode == "beam" else {}
    config = GenerationConfig(
        do_sample=mode == "sample",
        num_return_sequences=n,
        max_new_tokens=int(catalog.tree.depth.max()),
        eos_token_id=tokens.eos_id,
        pad_token_id=tokens.tokenizer.pad_token_id,
        **draws,
        **beams,
    )
    order = sorted(range(len(contexts_B)), key=lambda i: len(contexts_B[i]))  # little padding
    n_contexts = max(1, batch_size // max(n, n_beams))
    items: dict[int, list[str]] = {}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with inference(model), torch.random.fork_rng(devices=devices), own_settings_aside(policy):
        torch.manual_seed(seed)
        for start in range(0, len(order), n_contexts):
            batch = order[start : start + n_contexts]
            ids, mask = left_padded([contexts_B[i] for i in batch], tokens.tokenizer.pad_token_id, policy.device)
            constraint = CatalogConstraint(catalog.tree, tokens, prompt_width=ids.shape[1])
            sequences = policy.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([constraint]),
            )
            found = _items_written(catalog.tree, sequences[:, ids.shape[1] :].cpu().numpy()).reshape(len(batch), n)
            for i, row in zip(batch, found.tolist(), strict=True):
                if mode == "beam":
                    # Where fewer beginnings exist than beams, `generate` fills up with copies and impossible rows.
                    row = [item for item in dict.fromkeys(row) if item >= 0]
                assert min(row, default=-1) >= 0, "constrained decoding wrote what is no item"
                items[i] = [catalog.item_ids[item] for item in row]
    return [items[i] for i in range(len(contexts_B))]


def _items_written(tree: PrefixTree, written_R_T: np.ndarray) -> np.ndarray:
    """(R,) the item that each row begins with; -1 where it is none."""
    nodes, items = np.zeros(len(written_R_T), dtype=np.int64), np.full(len(written_R_T), -1)
    for tokens_R in written_R_T.T:
        nodes = tree.step(nodes, tokens_R)
        items = np.where(items < 0, tree.items_at(nodes), items)
    return items


def _check_fit(config: PretrainedConfig, tree: PrefixTree, tokens: Tokens, contexts: Sequence[Sequence[int]]) -> None:
    highest = int(tree.token.max())
    if highest >= config.vocab_size:
        raise ValueError(
            f"the catalog has token {highest} but the model knows {config.vocab_size} tokens; build the catalog with "
            f"the model's own tokenizer"
        )
    unmarked = sum(not context or context[-1] != tokens.marker_id for context in contexts)
    if unmarked:
        raise ValueError(
            f"{unmarked} of {len(contexts)} contexts do not end with the marker; make them with Tokens.marked_context"
        )
    longest = max(map(len, contexts), default=0) + int(tree.depth.max())
    if longest > config.max_position_embeddings:
        raise ValueError(
            f"a context and its item take {longest} tokens, the model {config.max_position_embeddings}; shorten the "
            f"history budget"
        )
