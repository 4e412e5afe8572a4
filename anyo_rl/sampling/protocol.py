"""The contract of a sampler: contexts and a `Sampling` in, completions out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled.

    Attributes:
        n: completions of each context.
        temperature: 0 (greedy) or more.
        top_p: nucleus, in (0, 1].
        max_new_tokens: most tokens of a completion, the marker included.
        seed: of the draws.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0

    def greedy(self) -> "Sampling":
        """One completion of each context, without draws."""
        return replace(self, n=1, temperature=0.0)


@dataclass(frozen=True)
class Sample:
    """One completion.

    Attributes:
        token_ids: what was generated, the stop token included.
        log_probs: log-probability of each token under the policy at this temperature, the nucleus (`top_p`) left
            aside; `None` where not asked for.
        finish_reason: `stop` when the marker or end-of-sequence was written, `length` when it was cut off.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...] | None
    finish_reason: Literal["stop", "length"]


class Sampler(Protocol):
    """Samples completions that stop at the marker."""

    def sample(
        self,
        contexts_B: Sequence[Sequence[int]],
        sampling: Sampling = Sampling(),
        *,
        keys_B: Sequence[str] | None = None,
    ) -> list[list[Sample]]:
        """Samples `sampling.n` completions of each context.

        Args:
            contexts_B: token ids of the prompts.
            sampling: how.
            keys_B: what tells the contexts apart, such as example ids: the draws of a key do not depend on what else
                is sampled. By default the context itself, and which of the same contexts in the call it is.

        Returns:
            B lists of n samples.
        """
        ...


@runtime_checkable
class LineSampler(Sampler, Protocol):
    """A sampler that also writes a reasoning line by line."""

    def sample_lines(
        self, contexts_B: Sequence[Sequence[int]], sampling: Sampling, limits_B: Sequence[int], keys_B: Sequence[str]
    ) -> list[Sample]:
        """Samples one completion of each context, which ends at a line break too.

        Args:
            contexts_B: token ids of the prompts and of what was written before.
            sampling: how; its `n` and `max_new_tokens` do not count here.
            limits_B: most new tokens of each, 1 or more.
            keys_B: what tells the draws apart, one of its own for each; see `Sampler.sample`.

        Returns:
            B samples. `stop` says that the last token is the marker, the end of the sequence, or holds a line break.
        """
        ...
