"""What a process reward model thinks of the steps of a reasoning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from accelerate import PartialState

from anyo_rl.data.completion import MARKER, completion_text
from anyo_rl.run.launch import whole_weights
from anyo_rl.values.prm import PRM_FILE, Prm
from anyo_rl.values.prm_vllm import VllmPrm

Reduction = Literal["min", "mean", "last", "product"]
REDUCTIONS: dict[str, Callable[[np.ndarray], Any]] = {
    "min": np.min,
    "mean": np.mean,
    "last": lambda scores: scores[-1],
    "product": np.prod,
}


class ProcessReward:
    """The scores of a PRM after each step, made one number in [0, 1].

    A completion without steps has nothing to be scored (`None`). One with steps and without the marker gets 0.0:
    reasonings that never end would be paid for otherwise.

    Args:
        model: folder of a PRM (`recipes/train_prm.py`); its tokenizer has to be that of the teacher that is trained.
        reduction: `min`, a reasoning is as good as its worst state; `mean`; `last`, what the whole of it is worth;
            `product`, which makes more steps cost more.
        batch_size: completions in one forward of `hf`.
        engine: `hf`, the PRM in this process; or `vllm`, on an engine of its own, of which one process can have one.
        max_model_len: most tokens of a prompt and its completion, for `vllm`.
        gpu_memory_utilization: share of a GPU's memory for the vLLM engine, beside what trains there.

    Raises:
        ValueError: there is no PRM in the folder, on an unknown reduction or engine, or several processes would start
            vLLM engines.
    """

    def __init__(
        self,
        model: str,
        reduction: Reduction = "min",
        batch_size: int = 64,
        engine: Literal["hf", "vllm"] = "hf",
        max_model_len: int = 1024,
        gpu_memory_utilization: float = 0.2,
    ) -> None:
        if reduction not in get_args(Reduction):
            raise ValueError(f"unknown reduction {reduction!r}: choose one of {', '.join(get_args(Reduction))}")
        if not (Path(model) / PRM_FILE).is_file():
            raise ValueError(f"no PRM at {model}: expected a folder that recipes/train_prm.py saved, with {PRM_FILE}")
        if engine not in ("hf", "vllm"):
            raise ValueError(f"unknown engine {engine!r}: choose one of hf, vllm")
        if engine == "vllm" and PartialState().num_processes > 1:
            raise ValueError(
                f"{PartialState().num_processes} processes would start their vLLM engines on the same GPU: set engine "
                "to hf, or train on one process"
            )
        self.model = model
        self.reduction = reduction
        self.batch_size = batch_size
        self.engine = engine
        self.engine_settings = {"max_model_len": max_model_len, "gpu_memory_utilization": gpu_memory_utilization}
        self._prm: Prm | VllmPrm | None = None  # loaded by the first batch, in the process that scores it
        self.__name__ = "process"

    def __call__(
        self,
        prompts: list[Any],
        completions: list[str] | list[list[dict[str, str]]],
        completion_ids: list[list[int]],
        **kwargs: Any,
    ) -> list[float | None]:
        """One reward per completion.

        Raises:
            ValueError: the token ids are of another tokenizer than the PRM's.
        """
        if not completions:
            return []
        if self._prm is None:
            self._prm = self._load()
        texts = [completion_text(completion) for completion in completions]
        self._prm.check_texts(completion_ids, texts)
        contexts = [self._prm.tokens.context_ids(prompt) for prompt in prompts]
        scores_B = self._prm.scores(contexts, completion_ids)
        return [self._reward(text, scores) for text, scores in zip(texts, scores_B, strict=True)]

    def _load(self) -> Prm | VllmPrm:
        device = PartialState().device
        if self.engine == "vllm":
            on_gpu = device.type != "cpu"
            settings: dict[str, Any] = dict(self.engine_settings)
            if not on_gpu:
                del settings["gpu_memory_utilization"]  # on the CPU it would be a share of the machine's memory
            return VllmPrm.load(self.model, on_gpu=on_gpu, **settings)
        with whole_weights():
            return Prm.load(self.model, device=device, batch_size=self.batch_size)

    def _reward(self, text: str, scores: np.ndarray) -> float | None:
        if len(scores) == 1:
            return None
        return float(REDUCTIONS[self.reduction](scores[1:])) if MARKER in text else 0.0
