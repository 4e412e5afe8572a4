"""Whether the opponent of a comparison was trained to the end, by a rule that was stated beforehand.

`direct` is converged when its validation has not risen for 3,000 updates and for half of all its updates, and when it
has had twice the FLOPs of its rival, all stages of it together. On the first toy world it stood at .35 for a thousand
updates and then climbed to .60: what is stopped on such a plateau is no opponent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from anyo_rl.evaluation.stages import DIRECT, stage_of
from anyo_rl.evaluation.summary import MAIN_METRIC
from anyo_rl.metrics.intervals import finite
from anyo_rl.run.folder import read_metrics


@dataclass(frozen=True)
class Training:
    """What a stage's log says of its training.

    Attributes:
        updates: how many there were.
        best: the update with the best validation, 0 where none was better than the start; `None` without validations.
        flops: of training; `None` where they were not counted.
        value: NDCG@10 of the best validation.
    """

    updates: int = 0
    best: int | None = None
    flops: float | None = None
    value: float | None = None

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, object]]) -> "Training":
        """From the rows of a log, those of `metrics.jsonl` or of a trainer's state; what is no number is left out."""
        rows = list(rows)
        steps = [int(step) for row in rows if (step := finite(row.get("step"))) is not None]
        values = {
            int(finite(row.get("step")) or 0): value
            for row in rows
            if (value := finite(row.get(f"eval_{MAIN_METRIC}"))) is not None
        }
        flops = [value for row in rows if (value := finite(row.get("flops"))) is not None]
        best = min(values, key=lambda step: (-values[step], step)) if values else None
        return cls(max(steps, default=0), best, max(flops, default=None), None if best is None else values[best])


@dataclass(frozen=True)
class Rule:
    """When a training counts as having been given its chance.

    Attributes:
        least_wait: updates without a better validation, at least.
        least_share: the same as a share of all updates.
        least_flops: FLOPs, in those of the rival.
    """

    least_wait: int = 3000
    least_share: float = 0.5
    least_flops: float = 2.0

    def missing(self, training: Training, rival_flops: float) -> list[str]:
        """What is missing, in words; nothing where the rule is met.

        Args:
            training: what is judged.
            rival_flops: of all stages of the rival together.
        """
        if training.best is None:
            return ["its training is not on record"]
        reasons = []
        waited = training.updates - training.best
        wanted = max(self.least_wait, round(self.least_share * training.updates))
        if waited < wanted:
            reasons.append(
                f"validation was best at update {training.best:,} of {training.updates:,}, and has to stay below that "
                f"for {wanted:,} more"
            )
        if training.flops is None or training.flops < self.least_flops * rival_flops:
            had = (
                "unknown" if training.flops is None or not rival_flops else f"{training.flops / rival_flops:.1f} times"
            )
            reasons.append(f"its FLOPs are {had} those of its rival, {self.least_flops:g} times wanted")
        return reasons


CONVERGED = Rule()


def read_trainings(metrics: Path) -> dict[str, Training]:
    """The trainings in a `metrics.jsonl`, by stage; lines that cannot be read are passed over."""
    rows: dict[str, list[Mapping[str, object]]] = {}
    for row in read_metrics(metrics)[0]:
        rows.setdefault(str(row.get("stage")), []).append(row)
    return {stage: Training.of(of_stage) for stage, of_stage in rows.items()}


def rival_flops(trainings: Mapping[str, Training]) -> float:
    """FLOPs of the stages that lead to the teacher which `direct` is compared with, controls aside."""
    return sum(
        one.flops or 0.0 for name, one in trainings.items() if name != DIRECT.name and not stage_of(name).control
    )


def not_converged(trainings: Mapping[str, Training]) -> str | None:
    """Why `direct` is not converged by the rule above, in words; `None` where it is.

    Args:
        trainings: of the run, those of its rivals among them.
    """
    return "; ".join(CONVERGED.missing(trainings.get(DIRECT.name, Training()), rival_flops(trainings))) or None
