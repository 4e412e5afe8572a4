"""Whether the opponent of a comparison was trained to the end, by a rule that was stated beforehand.

`direct` is converged when its validation has not risen for 3,000 updates and for half of all its updates, and when it
has had twice the FLOPs of its rival, all stages of it together. On the first toy world it stood at .35 for a thousand
updates and then climbed to .60: what is stopped on such a plateau is no opponent.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anyo_rl.evaluation.stages import DIRECT
from anyo_rl.evaluation.summary import MAIN_METRIC
from anyo_rl.metrics.intervals import finite

LEAST_WAIT = 3000  # updates
LEAST_SHARE = 0.5  # of all updates
LEAST_FLOPS = 2.0  # times the rival's


@dataclass(frozen=True)
class Training:
    """What a stage's log says of its training.

    Attributes:
        updates: how many there were.
        best: the update with the best validation, 0 where none was better than the start; `None` without validations.
        flops: of training; `None` where they were not counted.
    """

    updates: int = 0
    best: int | None = None
    flops: float | None = None


def read_trainings(metrics: Path) -> dict[str, Training]:
    """The trainings in a `metrics.jsonl`, by stage; lines that cannot be read are passed over."""
    rows: dict[str, list[Mapping[str, object]]] = {}
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.setdefault(str(row.get("stage")), []).append(row)
    return {stage: _training(of_stage) for stage, of_stage in rows.items()}


def _training(rows: list[Mapping[str, object]]) -> Training:
    steps = [int(step) for row in rows if (step := finite(row.get("step"))) is not None]
    values = {
        int(finite(row.get("step")) or 0): value
        for row in rows
        if (value := finite(row.get(f"eval_{MAIN_METRIC}"))) is not None
    }
    flops = [value for row in rows if (value := finite(row.get("flops"))) is not None]
    best = min(values, key=lambda step: (-values[step], step)) if values else None
    return Training(max(steps, default=0), best, max(flops, default=None))


def not_converged(trainings: Mapping[str, Training], stage: str = DIRECT.name) -> str | None:
    """Why a stage is not converged by the rule above, in words; `None` where it is.

    Args:
        trainings: of the run, those of its rivals among them.
        stage: the opponent.
    """
    training = trainings.get(stage, Training())
    if training.best is None:
        return "its training is not on record"
    reasons = []
    waited = training.updates - training.best
    wanted = max(LEAST_WAIT, round(LEAST_SHARE * training.updates))
    if waited < wanted:
        reasons.append(
            f"validation was best at update {training.best:,} of {training.updates:,}, and has to stay below that for "
            f"{wanted:,} more"
        )
    rival = sum(other.flops or 0.0 for name, other in trainings.items() if name != stage)
    if training.flops is None or training.flops < LEAST_FLOPS * rival:
        had = "unknown" if training.flops is None or not rival else f"{training.flops / rival:.1f} times"
        reasons.append(f"its FLOPs are {had} those of its rival, {LEAST_FLOPS:g} times wanted")
    return "; ".join(reasons) or None
