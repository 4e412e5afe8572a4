"""Seeds that belong to examples: what is drawn for one does not depend on the company it is sampled in."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.policy import DIVERGED

ROWS_AT_ONCE = 64  # whose probabilities are held in double precision at once
FEW_ROWS = 4  # of a batch that is not worth making smaller


def request_seed(seed: int, key: str) -> int:
    """Seed of one example's draws, in [0, 2**62).

    vLLM adds the sample's index to it, so draw g is the same whatever n is; hashed, neighbours do not share draws.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8]) >> 2


def keys_of(contexts_B: Sequence[Sequence[int]], keys_B: Sequence[str] | None) -> list[str]:
    """The given keys of contexts; without any, the context itself and how many of the same came before.

    Raises:
        ValueError: the keys are not one of its own for each context.
    """
    if keys_B is not None:
        keys = list(keys_B)
        if len(set(keys)) < len(keys) or len(keys) != len(contexts_B):
            raise ValueError(
                f"{len(set(keys))} different keys for {len(contexts_B)} contexts: expected one of its own for each"
            )
        return keys
    seen: Counter[str] = Counter()
    keys = []
    for context in contexts_B:
        text = ",".join(map(str, context))
        keys.append(f"{text} #{seen[text]}")
        seen[text] += 1
    return keys


def uniforms(seed: int, sample_index: int, n: int) -> np.ndarray:
    """n numbers in [0, 1), shape (n,), of one completion: the first ones of a longer row."""
    rng = np.random.Generator(np.random.Philox(key=[seed, sample_index]))
    return rng.integers(0, 2**32, n, dtype=np.uint32) / 2**32


def draws_dtype(device: torch.device) -> torch.dtype:
    """What draws are made in: double precision, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


class OwnDraws(LogitsProcessor):
    """Draws the next token of each row by a number of its own, and leaves no other: the last of all processors.

    The token is the first at which the summed probability passes the number, so each comes with its probability.

    Args:
        uniforms_B_T: numbers in [0, 1), one for each row and new token.
        prompt_width: where the new tokens begin.
        device: of the scores.
    """

    def __init__(self, uniforms_B_T: np.ndarray, prompt_width: int, device: torch.device) -> None:
        self.uniforms_B_T = torch.from_numpy(uniforms_B_T).to(draws_dtype(device)).to(device)
        self.prompt_width = prompt_width

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(B, V) scores: 0 for the token that was drawn and -inf for the others."""
        numbers_B = self.uniforms_B_T[:, input_ids.shape[1] - self.prompt_width]
        drawn = torch.full_like(scores, -torch.inf)
        for start in range(0, len(scores), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            summed = scores[rows].to(numbers_B.dtype).softmax(-1).cumsum(-1)
            total = summed[:, -1]
            if not total.isfinite().all():
                raise UsageError(DIVERGED)
            # In single precision a number may round up to 1, and would pass all tokens.
            passed = torch.minimum(numbers_B[rows] * total, torch.nextafter(total, torch.zeros_like(total)))
            chosen = torch.searchsorted(summed, passed[:, None], right=True)
            drawn[rows].scatter_(1, chosen, 0.0)
        return drawn


class OwnEnds(StoppingCriteria):
    """Ends each row at a stop or at a length of its own.

    Args:
        stops: tokens that end a row.
        limits_B: most new tokens of each row.
        prompt_width: where the new tokens begin.
        device: of the rows.
        halves: also end the batch once half of its rows have ended, so that the others can go on without them.

    Attributes:
        ended_B: which rows are at their own end.
    """

    def __init__(
        self, stops: Sequence[int], limits_B: Sequence[int], prompt_width: int, device: torch.device, halves: bool
    ) -> None:
        self.stops = torch.tensor(stops, device=device)
        self.limits_B = torch.tensor(limits_B, device=device)
        self.prompt_width = prompt_width
        self.halves = halves and len(limits_B) > FEW_ROWS
        self.ended_B = torch.zeros(len(limits_B), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object) -> torch.BoolTensor:
        """(B,) whether rows are to be written no further in this batch."""
        n_new = input_ids.shape[1] - self.prompt_width
        self.ended_B = self.ended_B | torch.isin(input_ids[:, -1], self.stops) | (n_new >= self.limits_B)
        if self.halves and 2 * self.ended_B.sum() >= len(self.ended_B):
            return torch.ones_like(self.ended_B)  # type: ignore[return-value]
        return self.ended_B  # type: ignore[return-value]
