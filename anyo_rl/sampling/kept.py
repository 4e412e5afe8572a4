"""Reasonings that were written before, in place of writing them again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from anyo_rl.run.files import read_table
from anyo_rl.sampling.protocol import Sample, Sampler, Sampling


@dataclass(frozen=True)
class KeptSampler:
    """Gives the paths of a table, and samples what it has not.

    Attributes:
        samples: example id → its paths, by their index; of the same weights and settings as will be asked for.
        sampler: samples the rest.
    """

    samples: Mapping[str, list[Sample]]
    sampler: Sampler

    @classmethod
    def read(cls, file: Path, sampler: Sampler) -> "KeptSampler":
        """Those of a paths table, if it is there; all processes call this together, and the main one reads.

        Args:
            file: the table.
            sampler: samples what is not in it.
        """
        found: dict[str, list[Sample]] = {}
        if PartialState().is_main_process and file.is_file():
            columns = ("example_id", "token_ids", "token_log_probs", "finish_reason")
            for example, ids, log_probs, reason in read_table(file).sort("sample_index").select(columns).iter_rows():
                found.setdefault(example, []).append(Sample(tuple(ids), log_probs and tuple(log_probs), reason))
        (found,) = broadcast_object_list([found])
        return cls(found, sampler)

    def sample(
        self,
        contexts_B: Sequence[Sequence[int]],
        sampling: Sampling = Sampling(),
        *,
        keys_B: Sequence[str] | None = None,
    ) -> list[list[Sample]]:
        """See `Sampler`; kept paths belong to keys."""
        samples_B = [self.samples.get(key, []) for key in keys_B or ()] or [[] for _ in contexts_B]
        left = [b for b, samples in enumerate(samples_B) if len(samples) != sampling.n]
        if left:
            keys = None if keys_B is None else [keys_B[b] for b in left]
            written = self.sampler.sample([contexts_B[b] for b in left], sampling, keys_B=keys)
            for b, samples in zip(left, written, strict=True):
                samples_B[b] = samples
        return samples_B
