"""A student: chosen on validation, trained with several seeds, evaluated on all test examples beside what there is.

A run folder holds, besides what every run folder holds:

    trials/           what was tried with the first seed: a student each, and what its fit did
    chosen.json       what was chosen, and how long the search took
    seed-S/student/   the student of a seed: student.safetensors and student.json
    seed-S/answers/   its answers to the test examples
    evaluation.json   means over seeds with intervals over users, and evaluation.md
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyo_rl.data.task import Task
from anyo_rl.distill.cache import TeacherCache
from anyo_rl.evaluation.baselines import (
    ALTERNATIVES,
    Baseline,
    Fitting,
    StudentSettings,
    evaluate_baselines,
    keep_baseline,
)
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.evaluation.summarise import write_seeds
from anyo_rl.evaluation.summary import Summary
from anyo_rl.evaluation.table import markdown_table
from anyo_rl.run.files import read_json, readable, write_whole
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.baselines import RANKER, choices, read_baseline
from anyo_rl.stages.student_arguments import NO_VECTORS, DistillArguments, StudentArguments
from anyo_rl.stages.vectors import title_vectors
from anyo_rl.students.choice import choose_in_turn
from anyo_rl.students.cold import warm_up
from anyo_rl.students.distillation import Lessons
from anyo_rl.students.files import Student, load_student, save_student
from anyo_rl.students.fit import Help
from anyo_rl.students.settings import DistillSettings

logger = logging.getLogger(__name__)

TITLES = ("tfidf", "minilm")
BESIDE = ("popularity", "item_knn")  # what is fitted beside a student where no other run is named


@dataclass(frozen=True)
class Distilled(StudentSettings):
    """What is chosen of a distilled student: besides a neural baseline's settings, two of the distillation."""

    labels: float = 0.5
    temperature: float = 1.0


@dataclass(frozen=True)
class _Trainer:
    """Trains a student with some settings, once."""

    args: StudentArguments
    fitting: Fitting
    item_ids: Sequence[str]

    def student(self, settings: StudentSettings, seed: int) -> Student:
        """The student of a seed; the one that is there, if there is one."""
        name = ",".join(f"{name}-{value:g}" for name, value in asdict(settings).items())
        folder = Path(self.args.output_dir) / "trials" / f"seed-{seed}" / name
        if not (folder / "student.json").is_file():
            part = folder / "fit.safetensors"
            fitting = replace(self.fitting, training=replace(self.fitting.training, keep_in=part))
            if isinstance(settings, Distilled):
                how = replace(fitting.given.distillation, labels=settings.labels, temperature=settings.temperature)
                fitting = replace(fitting, given=replace(fitting.given, distillation=how))
            student = fitting.neural(self.args.student, settings, seed).cpu()
            write_whole(folder / "fit.json", json.dumps(asdict(student.report)))
            save_student(student, self.item_ids, folder)
            part.unlink(missing_ok=True)
        return load_student(folder, self.item_ids)

    def seconds(self) -> float:
        """How long all fits took."""
        files = Path(self.args.output_dir).glob("trials/seed-*/*/fit.json")
        return sum(read_json(file)["seconds"] for file in files)


def train_student(
    task: Task, args: StudentArguments, distill: DistillArguments | None = None, lessons: Lessons | None = None
) -> Summary:
    """Chooses, trains and evaluates a student; what is finished is not done again.

    Args:
        task: the data.
        args: what to do, and where.
        distill: how much of what a teacher said counts; `None` without a teacher.
        lessons: what it said.

    Returns:
        The means over seeds, as `evaluation.json` has them.
    """
    folder = Path(args.output_dir)
    item_ids = task.interactions.items["item_id"].to_list()
    test = task.split("test", task.args.max_test)
    evaluations = {seed: Evaluation(folder / f"seed-{seed}", task, item_ids, test, seed) for seed in args.seeds}
    first = evaluations[args.seeds[0]]
    for evaluation in evaluations.values():
        for other in args.beside or []:
            evaluation.take_over(Path(other))
    vectors = _item_vectors(folder, task, args.item_vectors)
    given = Help(vectors, args.fuse, lessons, DistillSettings() if distill is None else distill.settings)
    fitting = replace(Fitting.of(first), training=args.training, given=given, n_thoughts=args.n_thoughts)
    trainer = _Trainer(args, fitting, item_ids)
    chosen = _chosen(trainer, distill)
    kind: Any = StudentSettings if distill is None else Distilled
    for seed, evaluation in evaluations.items():
        student = trainer.student(kind(**chosen.settings), seed)
        if args.least_events and vectors is not None:
            n_cold = warm_up(student, vectors, fitting.sequences, args.least_events)
            logger.info("%d items with fewer than %d events get predicted vectors", n_cold, args.least_events)
        save_student(student, item_ids, evaluation.run_dir / "student")
        keep_baseline(evaluation, args.name, lambda student=student: student)  # type: ignore[misc]
        for n_thoughts in args.fewer_thoughts:
            less = partial(load_student, evaluation.run_dir / "student", item_ids, n_thoughts)
            keep_baseline(evaluation, f"{args.name}_thoughts_{n_thoughts}", less)
    evaluate_baselines(first, () if args.beside else BESIDE)
    summary = write_seeds(folder, evaluations, RANKER)
    write_whole(folder / "evaluation.md", f"{markdown_table(summary)}\n{choices([chosen])}")
    return summary


def read_lessons(task: Task, args: DistillArguments) -> tuple[Lessons, Mapping[str, object]]:
    """What a teacher said of the training histories, and what its cache says that it is made of.

    Raises:
        UsageError: see `TeacherCache.open`.
    """
    cache = TeacherCache.open(Path(args.teacher_cache), task)
    lessons = Lessons(
        cache.user_B,
        cache.position_B,
        cache.top_items_B_K,
        cache.top_log_probs_B_K,
        cache.states_B_D,
        cache.reasoning_vectors_B_D,
    )
    return lessons, asdict(cache.card)


def read_choice(folder: Path) -> Baseline:
    """What was chosen of a run's student."""
    return read_baseline(folder / "chosen.json")


def _chosen(trainer: _Trainer, distill: DistillArguments | None) -> Baseline:
    """What is chosen, with the first seed."""
    args = trainer.args
    file = Path(args.output_dir) / "chosen.json"
    if not file.is_file():
        start = args.start
        alternatives: dict[str, Sequence[Any]] = dict(ALTERNATIVES) if args.tune else {}
        if distill is not None:
            start = Distilled(**asdict(start), labels=distill.labels[0], temperature=distill.temperature[0])
            alternatives |= distill.alternatives
        choice = choose_in_turn(
            lambda settings: trainer.student(settings, args.seeds[0]),
            start,
            alternatives,
            trainer.fitting.validation,
        )
        found = Baseline(args.name, asdict(choice.settings), choice.value, trainer.seconds())
        write_whole(file, json.dumps(asdict(found), indent=2))
    return read_choice(Path(args.output_dir))


def _item_vectors(folder: Path, task: Task, source: str) -> NDArray[np.floating] | None:
    """Vectors of the items, in the order of the catalog.

    Raises:
        UsageError: the file is not there, or holds something else.
    """
    if source == NO_VECTORS:
        return None
    if source in TITLES:
        return title_vectors(folder / "vectors.safetensors", task, source)
    file, n_items = Path(source), len(task.interactions.items)
    expected = f"expected none, {', '.join(TITLES)}, or a .npy of ({n_items}, D) numbers in the order of the catalog"
    if file.suffix != ".npy" or not file.is_file():
        raise UsageError(f"item_vectors is {source!r}, and there is no such file; {expected}")
    with readable(file, "name another file"):
        vectors = np.load(file, allow_pickle=False)
    if vectors.ndim != 2 or len(vectors) != n_items or not np.issubdtype(vectors.dtype, np.floating):
        raise UsageError(f"{file} holds {vectors.dtype} of {vectors.shape}; {expected}")
    return vectors
