"""Contexts, and tree nodes read on top of them: what all forms of the engine share.

`ContextCache` keeps contexts in the model's key-value cache, and reads many nodes in one forward by a mask over the
tree. `ContextPaths` is for models whose layers take no such mask (a sliding window, a recurrent state): it reads each
path anew, context and all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.teacher.policy import attends_over_trees, attention_bias, causal_lm, tree_attention


def check_catalog(model: nn.Module, catalog: Catalog) -> None:
    """Refuses a model that cannot rank a catalog.

    Raises:
        ValueError: the model's vocabulary is smaller than the catalog's tokens.
    """
    check_vocabulary(catalog.tree, causal_lm(model).config.get_text_config().vocab_size)


def check_vocabulary(tree: PrefixTree, n_tokens: int) -> None:
    """Refuses a tree with tokens that a model of so many tokens does not know, by a `ValueError`."""
    if tree.token.max() >= n_tokens:
        raise ValueError(
            f"the catalog has token {tree.token.max()} but the model knows {n_tokens} tokens; build the catalog with "
            f"the model's own tokenizer"
        )


def check_contexts(model: nn.Module, contexts: Sequence[Sequence[int]], longest_path: int) -> None:
    """Refuses contexts that cannot be answered.

    Raises:
        ValueError: a context is empty, or longer with its item than the model's positions.
    """
    check_room(contexts, longest_path, causal_lm(model).config.get_text_config().max_position_embeddings)


def check_room(contexts: Sequence[Sequence[int]], longest_path: int, limit: int) -> None:
    """Refuses contexts that are empty or that with an item take more than `limit` tokens, by a `ValueError`."""
    longest = max(map(len, contexts), default=0) + longest_path
    if longest > limit:
        raise ValueError(
            f"a context and its item take {longest} tokens, the model {limit}; shorten the history budget"
        )
    if any(not context for context in contexts):
        raise ValueError("a context is empty; it must hold at least the marker")


def in_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(first), len(second))
    return next((place for place in range(shorter) if first[place] != second[place]), shorter)


@dataclass(frozen=True)
class Beginnings:
    """What contexts begin with: each beginning once, and which one each context has."""

    beginnings: list[tuple[int, ...]]
    beginning_B: list[int]


def shared_beginnings(contexts_B: Sequence[Sequence[int]]) -> Beginnings | None:
    """What to read once for several contexts; `None` where that spares less than a third of the tokens.

    Neighbours in alphabetical order go together if they have half of their tokens or more in common. The last token
    of a context is never a part of its beginning: the state is taken there.
    """
    order = sorted(range(len(contexts_B)), key=lambda b: tuple(contexts_B[b]))
    beginnings: list[tuple[int, ...]] = []
    beginning_B = [0] * len(contexts_B)
    for b in order:
        context = tuple(contexts_B[b])[:-1]
        common = in_common(beginnings[-1], context) if beginnings else 0
        if beginnings and 2 * common >= max(len(beginnings[-1]), len(context)):
            beginnings[-1] = context[:common]
        else:
            beginnings.append(context)
        beginning_B[b] = len(beginnings) - 1
    if not all(beginnings):
        return None
    whole = len(contexts_B) * max(map(len, contexts_B))
    begun = max(map(len, beginnings))
    longest_end = max(len(contexts_B[b]) - len(beginnings[which]) for b, which in enumerate(beginning_B))
    read = len(beginnings) * begun + len(contexts_B) * longest_end
    return Beginnings(beginnings, beginning_B) if 3 * read <= 2 * whole else None


class ContextCache:
    """B contexts, left padded and read once; tree nodes are read on top, each seeing its context and its ancestors.

    What contexts begin with together, as the paths of one prompt do, is read once for all of them.

    Use it within `anyo_rl.teacher.policy.inference`.

    Args:
        model: the teacher; wrappers are seen through.
        contexts: B token id lists that end with the marker, unequal lengths allowed.

    Attributes:
        states_B_D: last hidden states at the markers.
        n_kept: tree columns in the cache beside them.
    """

    def __init__(self, model: nn.Module, contexts: Sequence[Sequence[int]]) -> None:
        self.policy = causal_lm(model)
        self.decoder = getattr(self.policy, self.policy.base_model_prefix)
        self.cache = DynamicCache(config=self.policy.config)
        self.n_kept = 0
        shared = shared_beginnings(contexts)
        if shared is None:
            self._read_contexts(contexts)
        else:
            self._read_contexts(shared.beginnings)
            self.select(torch.tensor(shared.beginning_B))
            lengths = [len(shared.beginnings[which]) for which in shared.beginning_B]
            self._read_ends([context[n:] for context, n in zip(contexts, lengths, strict=True)])

    @property
    def width(self) -> int:
        """Columns that the contexts take in the cache, padding included."""
        return self.mask_B_T.shape[1]

    def _read_contexts(self, contexts: Sequence[Sequence[int]]) -> None:
        ids, self.mask_B_T = self._left_padded(contexts)
        self.lengths_B = self.mask_B_T.sum(1)
        self.states_B_D = self.decoder(
            input_ids=ids,
            attention_mask=self.mask_B_T.long(),
            position_ids=(self.mask_B_T.long().cumsum(1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

    def _read_ends(self, ends_B: Sequence[Sequence[int]]) -> None:
        """Reads on in each context, whose beginning is in the cache, as if what comes were a chain of tree nodes."""
        ids, mask = self._left_padded(ends_B)
        square = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device)
        own = square.tril() & square.triu()  # padding has something to attend to
        states = self.read(ids, mask.long().cumsum(1), mask[:, None] & square.tril() | own)
        self.mask_B_T = torch.cat([self.mask_B_T, mask], 1)
        self.lengths_B = self.mask_B_T.sum(1)
        self.states_B_D = states[:, -1]
        self.n_kept = 0

    def _left_padded(self, contexts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, W) tokens, and whether they are any."""
        width, device = max(map(len, contexts)), self.policy.device
        ids = torch.tensor([[0] * (width - len(c)) + list(c) for c in contexts], device=device)
        lengths_B = torch.tensor([len(c) for c in contexts], device=device)
        return ids, torch.arange(width, device=device)[None] >= width - lengths_B[:, None]

    def __len__(self) -> int:
        """Number of contexts B."""
        return len(self.lengths_B)

    def read(self, tokens_B_W: torch.Tensor, depth_B_W: torch.Tensor, allowed_B_W_M: torch.Tensor) -> torch.Tensor:
        """Reads W tree nodes of each context in one forward and keeps them in the cache.

        Axes of size B may be of size 1 where all contexts share them.

        Args:
            tokens_B_W: the nodes' tokens.
            depth_B_W: the nodes' depths; 1 is the first token after the marker.
            allowed_B_W_M: bool, which of the M tree columns (those in the cache, then these) a node attends to. Each
                node must attend to itself.

        Returns:
            (B, W, D) last hidden states.
        """
        n, size = len(self), tokens_B_W.shape[1]
        device, dtype = self.policy.device, self.policy.dtype
        context = self.mask_B_T[:, None].expand(-1, size, -1)
        allowed = torch.cat([context, allowed_B_W_M.to(device).expand(n, -1, -1)], dim=-1)[:, None]
        with tree_attention(self.policy):
            states = self.decoder(
                input_ids=tokens_B_W.to(device).expand(n, -1),
                attention_mask=attention_bias(allowed, dtype),
                position_ids=self.lengths_B[:, None] - 1 + depth_B_W.to(device),
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
        self.n_kept += size
        return states

    def forget_nodes(self) -> None:
        """Drops all tree nodes from the cache: back to the contexts alone."""
        if self.n_kept:
            self.cache.crop(-self.n_kept)
            self.n_kept = 0

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these contexts only, in this order."""
        rows = rows.to(self.policy.device)
        self.cache.batch_select_indices(rows)
        self.lengths_B, self.mask_B_T = self.lengths_B[rows], self.mask_B_T[rows]
        self.states_B_D = self.states_B_D[rows]


class ContextPaths:
    """B contexts whose tree nodes are read with all that comes before them: each path is a sequence of its own.

    The same as `ContextCache` for any causal model, at the cost of reading the context again with each path.

    Args:
        model: the teacher; wrappers are seen through.
        contexts: B token id lists that end with the marker.
        tokens_per_forward: tokens read at once, padding included, as far as one sequence is not longer.

    Attributes:
        states_B_D, width: as those of `ContextCache`.
    """

    def __init__(self, model: nn.Module, contexts: Sequence[Sequence[int]], tokens_per_forward: int) -> None:
        self.policy = causal_lm(model)
        self.tokens_per_forward = tokens_per_forward
        self.contexts = [tuple(context) for context in contexts]
        self.width = max(map(len, contexts))
        self._tokens_B_M: np.ndarray = np.zeros((len(self.contexts), 0), dtype=np.int64)
        self._depth_B_M = self._tokens_B_M
        self.states_B_D = self._states(self.contexts)

    def __len__(self) -> int:
        """Number of contexts B."""
        return len(self.contexts)

    @property
    def n_kept(self) -> int:
        """Tree nodes of each context that are known as ancestors."""
        return self._tokens_B_M.shape[1]

    def read(self, tokens_B_W: torch.Tensor, depth_B_W: torch.Tensor, allowed_B_W_M: torch.Tensor) -> torch.Tensor:
        """See `ContextCache.read`."""
        n, size = len(self), tokens_B_W.shape[1]
        self._tokens_B_M = np.concatenate([self._tokens_B_M, tokens_B_W.expand(n, -1).numpy()], 1)
        self._depth_B_M = np.concatenate([self._depth_B_M, depth_B_W.expand(n, -1).numpy()], 1)
        sequences = []
        for context, tokens_M, depth_M, allowed_W_M in zip(
            self.contexts, self._tokens_B_M, self._depth_B_M, allowed_B_W_M.expand(n, -1, -1).numpy(), strict=True
        ):
            for allowed_M in allowed_W_M:
                path = np.flatnonzero(allowed_M & (depth_M > 0))  # what pads has depth 0
                sequences.append((*context, *tokens_M[path[np.argsort(depth_M[path])]].tolist()))
        return self._states(sequences).view(n, size, -1)

    def forget_nodes(self) -> None:
        """Forgets all tree nodes."""
        self._tokens_B_M = self._depth_B_M = np.zeros((len(self), 0), dtype=np.int64)

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these contexts only, in this order."""
        self.contexts = [self.contexts[row] for row in rows.tolist()]
        self._tokens_B_M, self._depth_B_M = self._tokens_B_M[rows.numpy()], self._depth_B_M[rows.numpy()]
        self.states_B_D = self.states_B_D[rows.to(self.states_B_D.device)]

    def _states(self, sequences: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """(n, D) last hidden states at the ends of n sequences; one that begins another is read with it."""
        longest: list[tuple[int, ...]] = []
        ends: list[list[int]] = []  # of each of the longest, lengths of those that begin it
        for sequence in sorted(set(sequences), reverse=True):
            if not longest or longest[-1][: len(sequence)] != sequence:
                longest.append(sequence)
                ends.append([])
            ends[-1].append(len(sequence))
        waiting = sorted(range(len(longest)), key=lambda k: len(longest[k]))
        decoder = getattr(self.policy, self.policy.base_model_prefix)
        found: list[torch.Tensor] = []
        place: dict[tuple[int, ...], int] = {}
        while waiting:
            take = max(1, self.tokens_per_forward // len(longest[waiting[-1]]))
            batch, waiting = waiting[-take:], waiting[:-take]
            # What pads comes after all that is read, and causal layers do not see it.
            ids = pad_sequence([torch.tensor(longest[k]) for k in batch], batch_first=True)
            hidden = decoder(input_ids=ids.to(self.policy.device), use_cache=False).last_hidden_state
            at = [(row, end) for row, k in enumerate(batch) for end in ends[k]]
            place |= {longest[batch[row]][:end]: len(place) + i for i, (row, end) in enumerate(at)}
            found.append(hidden[[row for row, _ in at], [end - 1 for _, end in at]])
        return torch.cat(found)[[place[sequence] for sequence in sequences]]


def contexts_of(
    model: nn.Module, contexts: Sequence[Sequence[int]], tokens_per_forward: int
) -> ContextCache | ContextPaths:
    """Contexts ready for tree nodes, as the model can read these.

    Args:
        model: the teacher; wrappers are seen through.
        contexts: B token id lists that end with the marker.
        tokens_per_forward: of `ContextPaths`; with a cache the caller sees to it.
    """
    if attends_over_trees(causal_lm(model)):
        return ContextCache(model, contexts)
    return ContextPaths(model, contexts, tokens_per_forward)
