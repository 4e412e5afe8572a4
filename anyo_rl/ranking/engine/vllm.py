"""Exact ranks with the policy in a vLLM engine, for sampling jobs and evaluation at scale.

The search is that of `anyo_rl.ranking.engine.likelihood`. Each branching is a request for one token: context and path
in, scores of the branching's children out. Any offline engine will do, whatever its `logprobs_mode`: scores are
renormalised over the children. The prefix cache keeps contexts, so that each is computed once, but for what does not
fill a block: on the CPU, where blocks are of 128 tokens, smaller ones (`LLM(..., block_size=32)`) save most of that.

vLLM is imported when an engine is asked, so this module is also there without it.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.ranking.engine.best_first import Reader
from anyo_rl.ranking.engine.context import check_room, check_vocabulary
from anyo_rl.ranking.engine.likelihood import HALF_TIE_BAND, LikelihoodRanker
from anyo_rl.ranking.engine.nodes import edges_of, renormalised, unread

FLOAT32_TIE_BAND = 1e-4  # of vLLM's kernels: wider than that of transformers
TOKENS_PER_REQUEST = 128  # that vLLM gives the scores of by name


class VllmRanker(LikelihoodRanker):
    """`LikelihoodRanker` with the policy in a vLLM engine: the same ranks, brackets, top items and mixtures.

    The engine's weights are those of the call, but its prefix cache outlives them: call `llm.reset_prefix_cache()`
    after they changed.

    Args:
        catalog: built with the model's tokenizer.
        llm: an offline engine (`vllm.LLM`) with prefix caching, which is vLLM's default. `dtype="float32"` makes
            ranks as exact as those of a model in hand; half precision widens the tie band.
        cap, node_budget: as in `LikelihoodRanker`.
        nodes_per_forward: tree nodes asked for in one call of the engine, over all contexts; bounds memory. The
            engine makes its own batches of them.
        tie_band: log-probabilities closer than this may stand in either order, and the bracket allows for it. `None`
            takes 1e-4 in float32 and 0.5 in half precision. In float32 on the CPU, items' log-probabilities were 4e-5
            at most from those of the model in hand (SmolLM2 on Office).

    Raises:
        ValueError: the engine has no prefix cache, its vocabulary is smaller than the catalog's tokens, or a limit is
            not positive.
    """

    def __init__(
        self,
        catalog: Catalog,
        llm: Any,
        *,
        cap: int | None = None,
        node_budget: int | None = None,
        nodes_per_forward: int = 8192,
        tie_band: float | None = None,
    ) -> None:
        config = llm.llm_engine.vllm_config
        if not config.cache_config.enable_prefix_caching:
            raise ValueError(
                "the engine would compute the whole context again for each tree node: make it with "
                "LLM(..., enable_prefix_caching=True)"
            )
        own_band = FLOAT32_TIE_BAND if config.model_config.dtype == torch.float32 else HALF_TIE_BAND
        super().__init__(
            catalog,
            llm,
            cap=cap,
            node_budget=node_budget,
            nodes_per_forward=nodes_per_forward,
            # Contexts beyond what the prefix cache holds would push each other out between two calls.
            tokens_per_forward=config.cache_config.num_gpu_blocks * config.cache_config.block_size,
            tie_band=own_band if tie_band is None else tie_band,
        )

    def _check_catalog(self) -> None:
        check_vocabulary(self.catalog.tree, self.model.llm_engine.model_config.get_vocab_size())

    def _check_contexts(self, contexts: Sequence[Sequence[int]]) -> None:
        check_room(contexts, int(self.catalog.tree.depth.max()), self.model.llm_engine.model_config.max_model_len)

    def _running(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _reader(self, contexts_U_G: Sequence[Sequence[Sequence[int]]]) -> Reader:
        return VllmReader(self.model, self.catalog.tree, contexts_U_G, self.nodes_per_forward)


class VllmReader:
    """Next-token distributions at branchings from a vLLM engine; see `anyo_rl.ranking.engine.best_first.Reader`.

    Args:
        llm: an offline engine with prefix caching.
        tree: of the catalog whose items compete.
        contexts_U_G: token ids that end with the marker.
        nodes_per_call: tree nodes asked for in one call of the engine, over all contexts.
    """

    def __init__(
        self, llm: Any, tree: PrefixTree, contexts_U_G: Sequence[Sequence[Sequence[int]]], nodes_per_call: int
    ) -> None:
        self.llm, self.tree, self.contexts_U_G, self.nodes_per_call = llm, tree, contexts_U_G, nodes_per_call
        self.n_paths = len(contexts_U_G[0])
        self.users = np.arange(len(contexts_U_G))
        self.n_nodes_U = np.zeros(len(contexts_U_G), dtype=np.int64)
        self.most_nodes = 0
        self._known: list[set[int]] = [set() for _ in contexts_U_G]

    def keep_users(self, users: np.ndarray) -> None:
        """Leaves more of a call to these users; the engine forgets the others by itself."""
        self.users = users

    def make_room(self, longest: int) -> tuple[int, bool]:
        """What a call may hold; nothing has to be forgotten for it."""
        return max(1, self.nodes_per_call // (len(self.users) * self.n_paths)), False

    def log_probs(self, user_J: np.ndarray, node_J: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `anyo_rl.ranking.engine.best_first.Reader`."""
        pair_E, child_E, begin_J = edges_of(self.tree, node_J)
        token_E = self.tree.token[child_E]
        prompts, children, places, n_nodes = [], [], [], 0
        for k, (user, node, end) in enumerate(
            zip(user_J.tolist(), node_J.tolist(), [*begin_J[1:], len(token_E)], strict=True)
        ):
            new = len(unread(self.tree, self._known[user], node))
            self.n_nodes_U[user] += new
            n_nodes += new * self.n_paths
            path = self.tree.token[unread(self.tree, set(), node)].tolist()
            for start in range(begin_J[k], end, TOKENS_PER_REQUEST):
                part = slice(start, min(end, start + TOKENS_PER_REQUEST))
                for g, context in enumerate(self.contexts_U_G[user]):
                    prompts.append([*context, *path])
                    children.append(token_E[part].tolist())
                    places.append((part, g))
        self.most_nodes = max(self.most_nodes, n_nodes)
        scores_E_G = np.empty((len(token_E), self.n_paths))
        for (part, g), scores in zip(places, token_scores(self.llm, prompts, children), strict=True):
            scores_E_G[part, g] = scores
        return pair_E, child_E, renormalised(scores_E_G, pair_E, begin_J)


def token_scores(llm: Any, prompts_R: Sequence[list[int]], tokens_R: Sequence[list[int]]) -> list[list[float]]:
    """Scores of given next tokens.

    Args:
        llm: an offline engine.
        prompts_R: R prompts as token ids.
        tokens_R: for each up to 128 tokens that may follow it.

    Returns:
        R lists: the tokens' log-probabilities, up to a constant of each prompt.
    """
    from vllm import SamplingParams

    # Everything that a checkpoint's generation config could bring in is said.
    common: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "detokenize": False, "flat_logprobs": True}
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts_R],
        [SamplingParams(logprob_token_ids=tokens, **common) for tokens in tokens_R],
        use_tqdm=False,
    )
    scores_R = []
    for output, tokens in zip(outputs, tokens_R, strict=True):
        found = output.outputs[0].logprobs
        _, *named = found.token_ids  # the first is the token that was written
        if named != tokens:
            raise RuntimeError(f"vLLM was asked for the scores of {len(tokens)} tokens and gave those of {len(named)}")
        scores_R.append(found.logprobs[1:])
    return scores_R
