"""The whole of it as one run: baselines, evidence, a teacher, its cache, students, and what each of them added.

A run folder holds, besides what every run folder holds:

    baselines/, evidence/    run folders as recipes/baselines.py and rank_evidence.py make them
    pretrain/, sft/, star/, grpo/, direct/    the stages of the teacher, whose run folder this is
    cache/                   what the last of them answers to the training histories (recipes/cache_teacher.py)
    student/, distilled/     run folders as recipes/train_student.py and distill_student.py make them
    answers/                 of all of them, to the same test examples
    evaluation.json, evaluation.md, report.html

Each part is made by the stage that its own recipe calls: what is finished is found, and a part's folder belongs to
its settings. Baselines, evidence and students are made by the main process alone.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.stages import DIRECT, EVIDENCE, FUSED_ROW, GRPO, PRETRAIN, SFT, STAR, STUDENT
from anyo_rl.evaluation.summary import FILE, Summary
from anyo_rl.run.folder import PRETRAINING, ROUNDS, WARM_START, Section, claim, resolve, start_run
from anyo_rl.run.settings import Bounds, UsageError
from anyo_rl.stages.baselines import BaselineArguments, evaluate_all
from anyo_rl.stages.cache import TEACHER, CacheArguments, cache_of_scores, cache_of_teacher
from anyo_rl.stages.checks import check_examples, check_history
from anyo_rl.stages.evaluate import ask_teachers, conclude
from anyo_rl.stages.evidence import EvidenceArguments, rank_by_evidence
from anyo_rl.stages.fusion import check_evidence
from anyo_rl.stages.job import Job
from anyo_rl.stages.pretrain import pretrain
from anyo_rl.stages.reinforce import train_reasoning
from anyo_rl.stages.sft import DIRECTLY, Lesson, train_sft
from anyo_rl.stages.star import Star
from anyo_rl.stages.student_arguments import DistillArguments, StudentArguments
from anyo_rl.stages.students import read_lessons, train_student
from anyo_rl.stages.warm_start import WarmStart, train_direct
from anyo_rl.students.distillation import Lessons

BASELINES, CACHE, DISTILLED = "baselines", "cache", "distilled"  # folders of parts, where they are not a stage's name
# Where the run folder keeps settings of a stage of the teacher that another one follows.
SECTIONS = {PRETRAIN.name: PRETRAINING, SFT.name: WARM_START, DIRECT.name: WARM_START, STAR.name: ROUNDS}


def _config(what: str) -> Any:
    help_ = f"Config of {what}, beside this config or from here; no such part if unset."
    return field(default=None, metadata={"help": help_, "free": True})  # each part's folder has its settings


@dataclass
class AnyoArguments:
    """Which parts a run has, and the config of each."""

    output_dir: str = field(default="runs/anyo", metadata={"help": "The run folder.", "free": True})
    seed: int = field(default=0, metadata={"bounds": Bounds(0, 2**32 - 1), "help": "Of everything that is drawn."})
    baselines_config: str | None = _config("the baselines (recipes/baselines.py)")
    evidence_config: str | None = _config("the evidence (recipes/rank_evidence.py)")
    pretrain_config: str | None = _config("the sequence stage (recipes/pretrain_teacher.py)")
    sft_config: str | None = _config("SFT (recipes/sft_teacher.py)")
    star_config: str | None = _config("STaR (recipes/star_teacher.py)")
    grpo_config: str | None = _config("GRPO (recipes/grpo_teacher.py)")
    cache_config: str | None = _config("the teacher cache (recipes/cache_teacher.py)")
    student_config: str | None = _config("the student without a teacher (recipes/train_student.py)")
    distill_config: str | None = _config("the distilled student (recipes/distill_student.py)")
    reasoning: bool = field(
        default=True,
        metadata={"help": "Whether the teacher reasons; else SFT trains one that answers at once, the last stage."},
    )
    train_direct: bool = field(
        default=True,
        metadata={"help": "Also train the same teacher without reasoning, to compare with.", "free": True},
    )
    train_fused: bool = field(
        default=False, metadata={"help": "Train STaR and GRPO on ranks by teacher and evidence together."}
    )
    cache_fused: bool = field(
        default=True,
        metadata={
            "help": "Where there is evidence, cache what it says together with the teacher; else the teacher alone.",
            "free": True,
        },
    )


@dataclass(frozen=True)
class Step:
    """A stage of the teacher.

    Attributes:
        training_args: TRL's settings.
        patience: validations without a gain before it stops; 0 trains to the end.
        args: other settings of its recipe: `SequenceArguments`, `StarArguments`, `GrpoArguments`; `None` for SFT.
        train: what is checked beforehand of GRPO, its rewards and its method.
    """

    training_args: TrainingArguments
    patience: int
    args: Any = None
    train: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Parts:
    """The settings of all parts; `None` for those that the run has not.

    Attributes:
        steps: stages of the teacher by name, in their order.
        distill: of the distilled student.
    """

    baselines: BaselineArguments | None = None
    evidence: EvidenceArguments | None = None
    steps: Mapping[str, Step] = field(default_factory=dict)
    cache: CacheArguments | None = None
    student: StudentArguments | None = None
    distill: tuple[StudentArguments, DistillArguments] | None = None


@dataclass(frozen=True)
class Anyo:
    """A run of all parts.

    Attributes:
        job: of the teacher; its folder is the run's.
        data_args: of the run.
        args: which parts there are.
        parts: the settings of each.
    """

    job: Job
    data_args: DataArguments
    args: AnyoArguments
    parts: Parts

    @property
    def baselines(self) -> Path | None:
        """The run folder of the baselines, the run's own or one that was given."""
        told = self.job.teacher_args.baselines_from
        return Path(told) if told else self.job.folder / BASELINES if self.parts.baselines else None

    @property
    def evidence(self) -> Path | None:
        """The run folder of the evidence, the run's own or one that was given."""
        told = self.job.teacher_args.evidence
        return Path(told) if told else self.job.folder / EVIDENCE.name if self.parts.evidence else None

    def start(self) -> None:
        """Claims the run folder for the teacher's settings; the other parts have folders of their own.

        Raises:
            RunFolderError: see `start_run`.
            UsageError: settings do not go with the data.
        """
        job, steps = self.job, self.parts.steps
        check_history(self.data_args, job.teacher_args)
        if SFT.name in steps and not job.task.rationales:
            raise UsageError(
                "the data has no rationales, and SFT is to teach reasoning: raise rationale_share, name "
                "rationales_path, or set reasoning to false for a teacher that answers at once"
            )
        for step in steps.values():
            check_examples(step.args, job.task)
        start_run(job.folder, self.sections(), job.task.report, job.task.fingerprint)

    def sections(self) -> dict[str, Section]:
        """What the run folder records: of the stages of the teacher the last by the names of its classes."""
        found = resolve(self.data_args, self.job.model_args, self.job.teacher_args, self.args)
        for number, (name, step) in enumerate(self.parts.steps.items(), start=1):
            told = step.training_args.to_dict() | {"early_stopping_patience": step.patience}
            others = [] if step.args is None else [step.args]
            if number < len(self.parts.steps):
                found |= resolve(**{SECTIONS[name]: told | {k: v for one in others for k, v in vars(one).items()}})
            else:
                last = resolve(*others, **{type(step.training_args).__name__: told})
                found |= {kind: dataclasses.replace(section, later=True) for kind, section in last.items()}
        return found

    def make_baselines(self) -> None:
        """The part of `recipes/baselines.py`."""
        args = self.parts.baselines
        if args is not None:
            self._claim(args.output_dir, args)
            _alone(Path(args.output_dir), lambda: evaluate_all(self.job.task, args))

    def make_evidence(self) -> None:
        """The part of `recipes/rank_evidence.py`."""
        args = self.parts.evidence
        if args is not None:
            args = dataclasses.replace(args, baselines_from=_text(self.baselines))
            self._claim(args.output_dir, args)
            _alone(Path(args.output_dir), lambda: rank_by_evidence(self.job.task, args))

    def train_teacher(self) -> dict[str, Path | str]:
        """All stages of the teacher, each from where the one before it ended.

        Returns:
            Stage name to teacher; `direct` too where it stands beside one that reasons.
        """
        found: dict[str, Path | str] = {}
        steps, start = self.parts.steps, self.job.model_args.model_name_or_path
        base = start
        for name, step in steps.items():
            if name in (STAR.name, GRPO.name):
                if start is None:
                    raise UsageError("STaR and GRPO have no teacher to start from: name sft_config or a teacher")
                job = self._job(step, fused=self.args.train_fused)
                check_evidence(step.args, job.teacher_args, job.task, job.seed)
                start = found[name] = self._reinforce(name, step, job, start)
                continue
            job = self._job(step, start)
            if name == PRETRAIN.name:
                start = base = found[name] = pretrain(job, name, step.training_args, step.args)
            else:
                rounds = steps.get(STAR.name)
                lesson = Lesson(hint_share=rounds.args.hint_share if rounds else 0.0)
                lesson = DIRECTLY if name == DIRECT.name else lesson
                start = found[name] = train_sft(job, name, step.training_args, lesson)
        if SFT.name in steps:
            step = steps[SFT.name]
            job = self._job(step, base)
            found |= train_direct(job, WarmStart(step.training_args, job.teacher_args, self.args.train_direct))
        return found

    def ask(self, teachers: Mapping[str, Path | str]) -> None:
        """Keeps the teachers' answers to the test examples, also together with the evidence."""
        if teachers:
            ask_teachers(self._job(fused=True), teachers)

    def make_cache(self) -> None:
        """The part of `recipes/cache_teacher.py`, of the last stage of the teacher unless its config says another."""
        args = self.parts.cache
        if args is None:
            return
        if args.source == TEACHER:
            cache_of_teacher(self._job(fused=self.args.cache_fused), args)
        else:
            cache_of_scores(self.job.task, args, _text(self.evidence), _text(self.baselines))

    def claim_students(self) -> list[tuple[Any, ...]]:
        """Claims the students' folders; all processes call this, and `make_students` is for one."""
        beside = [str(folder) for folder in (self.baselines, self.evidence) if folder is not None]
        found: list[tuple[Any, ...]] = []
        if self.parts.student is not None:
            plain = dataclasses.replace(self.parts.student, beside=beside or None)
            self._claim(plain.output_dir, plain)
            found.append((plain,))
            beside.append(plain.output_dir)
        if self.parts.distill is not None:
            args, distill = self.parts.distill
            args = dataclasses.replace(args, beside=beside or None)
            lessons: tuple[Lessons, Mapping[str, object]] = read_lessons(self.job.task, distill)
            self._claim(args.output_dir, args, distill, Teacher=lessons[1])
            found.append((args, distill, lessons[0]))
        return found

    def conclude(self, teachers: Mapping[str, Path | str], students: Sequence[tuple[Any, ...]]) -> Summary:
        """Trains the students, and writes the one table and the one report; the main process calls this alone.

        Args:
            teachers: as `train_teacher` gave them.
            students: as `claim_students` gave them.
        """
        for student in students:
            train_student(self.job.task, *student)
        beside = [folder for folder in (self.baselines, self.evidence) if folder is not None]
        beside += [Path(args.output_dir) for args, *_ in students]
        added = self.added(teachers)
        return conclude(self.job, teachers, baselines=not beside, beside=beside, added=added)

    def added(self, teachers: Mapping[str, Path | str]) -> list[tuple[str, str]]:
        """Each row of the table that builds on another one, and that."""
        chain = [name for name in teachers if name in self.parts.steps]
        pairs = [(EVIDENCE.name, "item_knn"), *zip(chain[1:], chain, strict=False)]
        if chain:
            pairs += [(f"{chain[-1]}{FUSED_ROW}", EVIDENCE.name), (f"{chain[-1]}{FUSED_ROW}", chain[-1])]
        if self.parts.distill is not None:
            pairs.append((self.parts.distill[0].name, STUDENT.name))
        return pairs

    def _reinforce(self, name: str, step: Step, job: Job, start: Path | str) -> Path:
        if name == STAR.name:
            return Star(job, step.args, step.training_args).train(start)
        return train_reasoning(job, name, start, step.args, step.training_args, *step.train)

    def _job(self, step: Step | None = None, start: Path | str | None = None, *, fused: bool = False) -> Job:
        """The job as a part has it: its patience, what it starts from, and whether it has the evidence."""
        told: dict[str, Any] = {"evidence": _text(self.evidence) if fused else None, "baselines_from": None}
        told |= {} if step is None else {"early_stopping_patience": step.patience}
        model_args = self.job.model_args
        if start is not None:
            model_args = dataclasses.replace(model_args, model_name_or_path=str(start))
        teacher_args = dataclasses.replace(self.job.teacher_args, **told)
        return dataclasses.replace(self.job, model_args=model_args, teacher_args=teacher_args)

    def _claim(self, folder: str, *arguments: Any, **sections: Any) -> None:
        task = self.job.task
        claim(Path(folder), resolve(*arguments, self.data_args, **sections), task.report, task.fingerprint)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _alone(folder: Path, make: Callable[[], object]) -> None:
    """The main process makes a part; the others look for its end, since waiting for each other has a time limit."""
    state = PartialState()
    if state.is_main_process:
        make()
    while not (folder / FILE).is_file():
        time.sleep(1)
    state.wait_for_everyone()
