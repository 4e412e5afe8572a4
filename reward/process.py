"""What a process reward model thinks of the steps of a reasoning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from accelerate import PartialState

from anyo_rl.completion import parse
from anyo_rl.launch import whole_weights
from anyo_rl.values.prm import PRM_FILE, Prm

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
        batch_size: completions in one forward.

    Raises:
        ValueError: there is no PRM in the folder, or on an unknown reduction.
    """

    def __init__(self, model: str, reduction: Reduction = "min", batch_size: int = 64) -> None:
        if reduction not in get_args(Reduction):
            raise ValueError(f"unknown reduction {reduction!r}: choose one of {', '.join(get_args(Reduction))}")
        if not (Path(model) / PRM_FILE).is_file():
            raise ValueError(f"no PRM at {model}: expected a folder that recipes/train_prm.py saved, with {PRM_FILE}")
        self.model = model
        self.reduction = reduction
        self.batch_size = batch_size
        self._prm: Prm | None = None  # loaded by the first batch, in the process that scores it
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
            with whole_weights():
                self._prm = Prm.load(self.model, device=PartialState().device, batch_size=self.batch_size)
        texts = [text if isinstance(text, str) else "".join(m["content"] for m in text) for text in completions]
        self._prm.check_texts(completion_ids, texts)
        contexts = [self._prm.tokens.context_ids(prompt) for prompt in prompts]
        scores_B = self._prm.scores(contexts, completion_ids)
        return [self._reward(text, scores) for text, scores in zip(texts, scores_B, strict=True)]

    def _reward(self, text: str, scores: np.ndarray) -> float | None:
        if len(scores) == 1:
            return None
        return float(REDUCTIONS[self.reduction](scores[1:])) if parse(text).marked else 0.0
