"""Contexts in the model's key-value cache, and tree nodes read on top of them: what all forms of the engine share."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import DynamicCache

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.teacher.policy import causal_lm, check_tree_attention


def check_catalog(model: nn.Module, catalog: Catalog) -> None:
    """Refuses a model that cannot rank a catalog.

    Raises:
        ValueError: the model cannot do tree attention, or its vocabulary is smaller than the catalog's tokens.
    """
    policy = causal_lm(model)
    check_tree_attention(policy)
    check_vocabulary(catalog.tree, policy.config.get_text_config().vocab_size)


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


class ContextCache:
    """B contexts, left padded and read once; tree nodes are read on top, each seeing its context and its ancestors.

    Use it within `anyo_rl.teacher.policy.inference`.

    Args:
        model: the teacher; wrappers are seen through.
        contexts: B token id lists that end with the marker, unequal lengths allowed.

    Attributes:
        states_B_D: last hidden states at the markers.
        width: columns that the contexts take in the cache, padding included.
        n_kept: tree columns in the cache beside them.
    """

    def __init__(self, model: nn.Module, contexts: Sequence[Sequence[int]]) -> None:
        self.policy = causal_lm(model)
        self.decoder = getattr(self.policy, self.policy.base_model_prefix)
        device = self.policy.device
        self.width = max(map(len, contexts))
        self.n_kept = 0
        self.lengths_B = torch.tensor([len(context) for context in contexts], device=device)
        ids = torch.tensor([[0] * (self.width - len(c)) + list(c) for c in contexts], device=device)
        self.mask_B_T = torch.arange(self.width, device=device)[None] >= self.width - self.lengths_B[:, None]
        self.cache = DynamicCache(config=self.policy.config)
        self.states_B_D = self.decoder(
            input_ids=ids,
            attention_mask=self.mask_B_T.long(),
            position_ids=(self.mask_B_T.long().cumsum(1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]

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
        # Additive, because eager attention takes no boolean mask.
        bias = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, torch.finfo(dtype).min)
        states = self.decoder(
            input_ids=tokens_B_W.to(device).expand(n, -1),
            attention_mask=bias,
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
