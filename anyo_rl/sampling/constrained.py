"""Constrained decoding: after the marker, a teacher can write nothing but items of the catalog.

What is sampled so is the distribution that `anyo_rl.ranking.likelihood` computes: the next token's renormalised over
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
        free_R = nodes_R == FREE
        if self.max_reasoning_tokens is None and free_R.all():
            return scores

        start_R, end_R = self.tree.child_start[nodes_R], self.tree.child_start[nodes_R + 1]
        count_R = np.where(nodes_R >= 0, end_R - start_R, 0)
        row_E = np.repeat(np.arange(len(nodes_R)), count_R)
        first_E = np.repeat(
            start_R - (np.cumsum(count_R) - count_R), count_R
        )  # so that each row's count from its start
        token_E = self.tree.token[first_E + np.arange(len(row_E))]
        forced_R = np.where(free_R, self.marker_id, self.eos_id)
        closed_R = (count_R == 0) & ~free_R
        if self.max_reasoning_tokens is not None and input_ids.shape[1] - 1 - self.start >= self.max_reasoning_tokens:
            closed_R |= free_R
        limited = torch.full_like(scores, -torch.inf)
        _put_log_probs(scores, limited, row_E, token_E)
        rows = torch.from_numpy(np.flatnonzero(closed_R)).to(scores.device)
        limited[rows, torch.from_numpy(forced_R[closed_R]).to(scores.device)] = 0.0
        rows = torch.from_numpy(np.flatnonzero(free_R & ~closed_R)).to(scores.device)
        limited[rows] = scores[rows]
        if self.max_reasoning_tokens is not None and len(rows):
            limited[rows, self.eos_id] = -torch.inf
            limited[rows] = limited[rows].log_softmax(-1)
        return limited

    def _walk(self, written_R_T: np.ndarray) -> np.ndarray:
        """(R,) the node that each row is at, given everything from the prompt's last token on."""
        seen, nodes = self._seen, self._nodes
        if nodes is not None and seen is not None and np.array_equal(written_R_T[:, :-1], seen):
            last_R = written_R_T[:, -1]
            marked_R = np.where(last_R == self.marker_id, 0, FREE)
            nodes = np.where(nodes == FREE, marked_R, self.tree.step(nodes, last_R))
        else:  # the first call, or beams that changed places
            nodes = self._walk_from_marker(written_R_T)
        self._seen, self._nodes = written_R_T.copy(), nodes
        return nodes

    def _walk_from_marker(self, written_R_T: np.ndarray) -> np.ndarray:
        is_marker_R_T = written_R_T == self.marker_id
        marked_R, marker_R = is_marker_R_T.any(1), is_marker_R_T.argmax(1)
        nodes = np.where(marked_R, 0, FREE)
        width = written_R_T.shape[1]
        for offset in range(1, width - int(marker_R[marked_R].min(initial=width - 1))):
            rows = np.flatnonzero(marked_R & (marker_R + offset < width))
            nodes[rows] = self.tree.step(nodes[rows], written_R_T[rows, marker_R[rows] + offset])
        return nodes


def _put_log_probs(scores_R_V: torch.Tensor, to_R_V: torch.Tensor, row_E: np.ndarray, token_E: np.ndarray) -> None:
    """Writes the log-probabilities of E (row, token) pairs among the pairs of their row, at these places alone."""
    device = scores_R_V.device
    row, token = torch.from_numpy(row_E).to(device), torch.from_numpy(token_E).to(device)
    chosen = scores_R_V[row, token]
    highest = chosen.new_full((len(scores_R_V),), -torch.inf).scatter_reduce(0, row, chosen, "amax")
    shifted = chosen - highest[row]
    total = torch.zeros_like(highest).scatter_add(0, row, shifted.exp())
    to_R_V[row, token] = shifted - total.log()[row]


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
            beams are sure to find the best item: a `LikelihoodRanker` is.
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
                assert row and min(row) >= 0, "constrained decoding wrote what is no item"
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
