"""The baselines of a data set: tuned on validation once, fitted with several seeds, evaluated on all test examples.

A run folder holds, besides what every run folder holds:

    chosen/           what was chosen of each, and how long the search took; kept, so that a killed run goes on
    seed-S/           answers and evaluation.json of a seed; what draws nothing is in the first one alone
    evaluation.json   means over seeds with intervals over users, and evaluation.md
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from anyo_rl.data.task import Task
from anyo_rl.evaluation.baselines import (
    NAMES,
    NEURAL,
    Baseline,
    Fitting,
    StudentSettings,
    choose_baseline,
    evaluate_oracles,
    fit_baseline,
    keep_baseline,
)
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.evaluation.summarise import write_seeds
from anyo_rl.evaluation.summary import Summary
from anyo_rl.evaluation.table import markdown_table
from anyo_rl.run.files import read_json, readable, write_whole
from anyo_rl.run.settings import Bounds, UsageError, all_fitted
from anyo_rl.students.ease import MOST_ITEMS

logger = logging.getLogger(__name__)

RANKER = "scores"


@dataclass
class BaselineArguments:
    """Which baselines, and how they are chosen."""

    output_dir: str = field(default="runs/toy-baselines", metadata={"help": "The run folder.", "free": True})
    names: list[str] = field(
        default_factory=lambda: list(NAMES), metadata={"help": f"Which: {', '.join(NAMES)}.", "free": True}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"bounds": Bounds(0, 2**32 - 1), "help": "Seeds of what draws; settings are chosen with the first."},
    )
    tune: bool = field(
        default=True,
        metadata={"help": "Choose dropout, batch, learning rate and size of neural ones on validation (7 fits each)."},
    )
    start: dict[str, dict[str, Any]] | None = field(
        default=None,
        metadata={"help": "Settings that a neural baseline begins with: its name to a mapping (in YAML)."},
    )

    @property
    def starts(self) -> dict[str, StudentSettings]:
        """What neural baselines begin with, by name.

        Raises:
            ValueError: a name or a setting is unknown.
        """
        known = {item.name for item in fields(StudentSettings)}
        for name, settings in (self.start or {}).items():
            if name not in NEURAL or not isinstance(settings, dict) or set(settings) - known:
                raise UsageError(
                    f"start has {name}: {settings}; expected one of {', '.join(NEURAL)}, with some of "
                    f"{', '.join(sorted(known))}"
                )
        return {
            name: replace(StudentSettings(), **all_fitted(StudentSettings, settings, f"start.{name}"))
            for name, settings in (self.start or {}).items()
        }

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.names) - set(NAMES)):
            raise UsageError(f"names has {', '.join(unknown)}; expected some of {', '.join(NAMES)}")
        if not self.seeds:
            raise UsageError("seeds is empty; expected one seed or more")
        self.starts  # noqa: B018 (unknown settings are said before anything is fitted)


def evaluate_all(task: Task, args: BaselineArguments) -> Summary:
    """Chooses, fits and evaluates; what is finished is not done again.

    Args:
        task: the data.
        args: what to do, and where.

    Returns:
        The means over seeds, as `evaluation.json` has them.
    """
    folder = Path(args.output_dir)
    item_ids = task.interactions.items["item_id"].to_list()
    test = task.split("test", task.args.max_test)
    seeds = args.seeds if set(args.names) & set(NEURAL) else args.seeds[:1]  # the others draw nothing
    evaluations = {seed: Evaluation(folder / f"seed-{seed}", task, item_ids, test, seed) for seed in seeds}
    first = evaluations[seeds[0]]
    fitting = Fitting.of(first, tuned=args.tune, start=args.starts)
    for name in args.names:
        if name == "ease" and len(item_ids) > MOST_ITEMS:
            logger.warning("ease is left out: %d items, and its weights are N² numbers", len(item_ids))
            continue
        chosen = _chosen(name, folder, fitting, first)
        for evaluation in evaluations.values() if name in NEURAL else [first]:
            keep_baseline(evaluation, name, partial(fit_baseline, chosen, fitting, evaluation.seed))
    evaluate_oracles(first)
    summary = write_seeds(folder, evaluations, RANKER)
    write_whole(folder / "evaluation.md", f"{markdown_table(summary)}\n{choices(read_choices(folder))}")
    return summary


def read_choices(folder: Path) -> list[Baseline]:
    """What was chosen of each baseline, in the order of tables."""
    files = [folder / "chosen" / f"{name}.json" for name in NAMES]
    return [read_baseline(file) for file in files if file.exists()]


def choices(baselines: Sequence[Baseline]) -> str:
    """A table of what was chosen, and how long that took."""
    lines = ["| | Chosen on validation | Validation NDCG@10 | Seconds |", "| --- | --- | ---: | ---: |"]
    for one in baselines:
        settings = ", ".join(f"{name} {value:g}" for name, value in one.settings.items()) or "–"
        value = "–" if one.validation_ndcg is None else f"{one.validation_ndcg:.4f}"
        lines.append(f"| {one.name} | {settings} | {value} | {one.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _chosen(name: str, folder: Path, fitting: Fitting, evaluation: Evaluation) -> Baseline:
    """What is chosen of a baseline; found with the first seed, whose answers it gives."""
    file = folder / "chosen" / f"{name}.json"
    if not file.exists():
        baseline, scorer = choose_baseline(name, fitting, evaluation.seed)
        keep_baseline(evaluation, name, lambda: scorer)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(baseline), indent=2))
    return read_baseline(file)


def read_baseline(file: Path) -> Baseline:
    """A baseline, or a student, as it was chosen."""
    with readable(file):
        return Baseline(**read_json(file))
