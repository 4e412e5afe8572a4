"""What a folder holds that can be asked, opened with the data it was made from."""

import dataclasses
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from trl import ModelConfig

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.evaluation.stages import ASKED_FIRST, EVIDENCE, STUDENT, TEACHERS
from anyo_rl.evidence.opened import CARD, Evidence
from anyo_rl.run.files import read_json, readable
from anyo_rl.run.folder import CONFIG, changed_data
from anyo_rl.run.settings import UsageError
from anyo_rl.search.how import Settings
from anyo_rl.serve.answerers import Answerer, Beside, OfScorer, OfTeacher
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import Recorded
from anyo_rl.stages.candidates import items_only
from anyo_rl.stages.fusion import alpha_file
from anyo_rl.stages.job import TEACHER, Job
from anyo_rl.students.files import load_student

logger = logging.getLogger(__name__)

STUDENT_FILE, EXPORTED = "student.json", "served.json"
EXPECTED = (
    "expected the run folder of a teacher (<stage>/teacher in it), of a student (seed-S/student in it) or of evidence"
)


@dataclass(frozen=True)
class Place:
    """Where what is to be asked lies.

    Attributes:
        run_dir: the run folder, which says what data it was made from.
        name: of the stage.
        folder: of the weights; the run folder of evidence.
    """

    run_dir: Path
    name: str
    folder: Path


def find(folder: Path, stage: str | None = None) -> Place:
    """Finds what a folder holds.

    Args:
        folder: a run folder, or the folder of a teacher or a student in one.
        stage: which teacher of a run; by default the first of `ASKED_FIRST` that is there.

    Raises:
        UsageError: nothing that can be asked is there; says what is, and what was expected.
    """
    if not folder.is_dir():
        raise UsageError(f"found no folder {folder}: {EXPECTED}")
    if (folder / EXPORTED).is_file():
        raise UsageError(f"{folder} is an exported student, which knows no titles: give the student's own folder")
    if (folder / STUDENT_FILE).is_file():
        return Place(_run_of(folder), STUDENT.name, folder)
    if folder.name == TEACHER and stage is None:
        return Place(_run_of(folder), folder.parent.name, folder)
    teachers = [name for name in TEACHERS if (folder / name / TEACHER).is_dir()]
    if stage is not None:
        if not (folder / stage / TEACHER).is_dir():
            raise UsageError(f"{folder} has no finished stage {stage!r}; it has {', '.join(teachers) or 'none'}")
        return Place(folder, stage, folder / stage / TEACHER)
    if teachers:
        name = next(name for name in ASKED_FIRST if name in teachers)
        return Place(folder, name, folder / name / TEACHER)
    if (folder / CARD).is_file():
        return Place(folder, EVIDENCE.name, folder)
    if students := sorted(folder.glob(f"seed-*/student/{STUDENT_FILE}")):
        return Place(folder, STUDENT.name, students[0].parent)
    raise UsageError(f"{folder} holds nothing that can be asked: {EXPECTED}, finished")


def _run_of(folder: Path) -> Path:
    """The run folder that a folder lies in."""
    for above in folder.resolve().parents:
        if (above / CONFIG).is_file():
            return above
    raise UsageError(f"{folder} lies in no run folder (no {CONFIG} above it), which would say what its items are")


def data_of(place: Place, data_dir: str | None = None) -> tuple[Recorded, Task]:
    """The settings of a run, and its data, read again.

    Args:
        place: in the run.
        data_dir: where named data sets lie now; as the run's settings say if `None`.

    Raises:
        UsageError: the data are not there any more, or are others.
    """
    recorded = Recorded.of(place.run_dir)
    args = recorded.arguments(DataArguments)
    if data_dir is not None:
        args = dataclasses.replace(args, data_dir=data_dir)
    try:
        task = load_task(args)
    except (DataError, OSError) as error:
        told = "; the folder keeps no copy of items and titles"
        raise UsageError(f"{place.run_dir} was made of {args.dataset}, which cannot be read{told}: {error}") from error
    if changed := [name for name in changed_data(place.run_dir, task.fingerprint) if name != "rationales"]:
        raise UsageError(
            f"{place.run_dir} was made from other data: {', '.join(changed)} changed since, and answers would be "
            "about other items. Put the data back as it was"
        )
    return recorded, task


def open_answerer(
    place: Place, recorded: Recorded, task: Task, settings: Settings, held: ExitStack, evidence: Path | None = None
) -> Answerer:
    """Opens what lies at a place.

    Args:
        place: of a teacher, a student or evidence.
        recorded: the settings of its run.
        task: its data.
        settings: of searches.
        held: closes the teacher's weights at its end.
        evidence: run folder of evidence to stand beside a teacher; if `None`, that which the run was trained with.

    Raises:
        UsageError: it is of other items, or damaged; or nothing says how much it counts beside evidence.
    """
    if evidence is not None and place.name not in TEACHERS:
        raise UsageError(f"evidence is named beside {place.name}: expected a teacher")
    index = {item_id: number for number, item_id in enumerate(task.interactions.items["item_id"].to_list())}
    if place.name == STUDENT.name:
        student = load_student(place.folder, list(index))

        def score(histories: Any, _: Any) -> np.ndarray:
            with torch.inference_mode():
                return np.asarray(student.scores(histories))

        return OfScorer(score, index)
    if place.name == EVIDENCE.name:
        return OfScorer(_fitted(place.folder, task).scores, index)
    PartialState(cpu=not torch.cuda.is_available())
    model_args = dataclasses.replace(recorded.arguments(ModelConfig), load_in_4bit=False, load_in_8bit=False)
    job = Job(
        *(place.run_dir, task, model_args, recorded.arguments(TeacherArguments), recorded.defaults["seed"]),
        chat_template_kwargs=recorded.chat_template_kwargs,
    )
    items_only(job.asking.kind, "a recommender")
    beside = None
    if evidence is not None:
        beside = _beside(place, task, evidence, job.seed)
    elif job.teacher_args.evidence:
        try:
            beside = _beside(place, task, Path(job.teacher_args.evidence), job.seed)
        except UsageError as error:
            logger.warning("%s was trained beside evidence and answers alone here: %s", place.folder, error)
    return OfTeacher(job, held.enter_context(job.opened(place.folder)), settings, beside)


def _fitted(folder: Path, task: Task, seed: int | None = None) -> Evidence:
    """Evidence whose retrievers are fitted, once."""
    evidence = Evidence.open(folder, task, seed, or_first=True)
    _ = evidence.maker.full
    return evidence


def _beside(place: Place, task: Task, folder: Path, seed: int) -> Beside:
    """Evidence beside a teacher, at the weights that an evaluation has chosen on validation."""
    files = {mode: alpha_file(place.run_dir, place.name, mode) for mode in ("plain", "greedy", "mixture")}
    alphas = {}
    for mode, file in files.items():
        if file.is_file():
            with readable(file):
                alphas[mode] = float(read_json(file)["alpha"])
    if not alphas:
        raise UsageError(
            f"nothing says how much {place.name} counts beside the evidence in {folder}: run recipes/evaluate.py "
            f"--run_dir {place.run_dir} --evidence {folder}, which chooses that on validation ({files['greedy']})"
        )
    return Beside(_fitted(folder, task, seed), {"mixture": alphas.get("greedy", alphas.get("plain", 0.0))} | alphas)
