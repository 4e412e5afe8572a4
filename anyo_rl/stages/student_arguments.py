"""Settings of the stages of students."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from anyo_rl.evaluation.baselines import StudentSettings
from anyo_rl.evaluation.stages import STUDENT
from anyo_rl.run.settings import Bounds, UsageError
from anyo_rl.students.losses import Alignment
from anyo_rl.students.settings import DistillSettings, FitSettings, Loss

NO_VECTORS = "none"
NAME = re.compile(rf"{STUDENT.name}(_[a-z0-9_]+)?")


@dataclass
class StudentArguments:
    """Which student, and how it is trained."""

    output_dir: str = field(default="runs/toy-student", metadata={"help": "The run folder.", "free": True})
    name: str = field(
        default=STUDENT.name,
        metadata={"help": "Of its row: `student`, or `student_` and how it learned, which is set against it."},
    )
    student: Literal["sasrec", "gru4rec"] = field(default="sasrec", metadata={"help": "What it is."})
    loss: Loss = field(
        default="softmax",
        metadata={"help": "Of the next item: over the whole catalog; over drawn items (sampled); binary (bce, gbce)."},
    )
    n_negatives: int = field(
        default=8192, metadata={"bounds": Bounds(1, 10**6), "help": "Items drawn in a step, for all but softmax."}
    )
    calibration: float = field(default=0.75, metadata={"bounds": Bounds(0, 1), "help": "t of gbce (gSASRec)."})
    label_smoothing: float = field(default=0.0, metadata={"bounds": Bounds(0, 1), "help": "Of softmax."})
    propensity_power: float = field(
        default=0.0, metadata={"bounds": Bounds(0, 1), "help": "Above 0 rare targets count for more."}
    )
    item_vectors: str = field(
        default=NO_VECTORS,
        metadata={"help": "Vectors of items: none, tfidf or minilm (titles), or a .npy of (N, D) in catalog order."},
    )
    fuse: bool = field(
        default=False,
        metadata={"help": "Add a learned projection of these vectors to the items' own; else items begin as them."},
    )
    least_events: int = field(
        default=0,
        metadata={
            "bounds": Bounds(0, 10**6),
            "help": "Items with fewer training events get, after the fit, what item_vectors predict for them (ridge).",
        },
    )
    n_thoughts: int = field(
        default=0,
        metadata={"bounds": Bounds(0, 64), "help": "How often SASRec's state is fed back before it answers (ReaRec)."},
    )
    thought_annealing: float = field(
        default=1.2,
        metadata={"bounds": Bounds(1, 10), "help": "Each thought's prediction is softer by this than the next one's."},
    )
    fewer_thoughts: list[int] = field(
        default_factory=list,
        metadata={
            "bounds": Bounds(0, 63),
            "help": "Also answer with fewer thoughts: a row for each number, without training again.",
            "free": True,
        },
    )
    dim: int = field(default=64, metadata={"bounds": Bounds(2, 4096), "help": "Width of item vectors."})
    dropout: float = field(default=0.3, metadata={"bounds": Bounds(0, 0.95), "help": "See the student's class."})
    learning_rate: float = field(default=1e-3, metadata={"bounds": Bounds(above=0, most=1), "help": "Of AdamW."})
    batch_size: int = field(default=32, metadata={"bounds": Bounds(1, 10**5), "help": "Sequences in one step."})
    weight_decay: float = field(default=0.0, metadata={"bounds": Bounds(0, 1), "help": "Of AdamW."})
    max_epochs: int = field(default=200, metadata={"bounds": Bounds(1), "help": "Most epochs."})
    patience: int = field(
        default=10, metadata={"bounds": Bounds(1), "help": "Epochs without a gain on validation before it stops."}
    )
    tune: bool = field(
        default=False, metadata={"help": "Also choose dropout, batch, learning rate and size on validation (7 fits)."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={"bounds": Bounds(0, 2**32 - 1), "help": "Seeds; settings are chosen with the first."},
    )
    beside: list[str] | None = field(
        default=None,
        metadata={
            "help": "Run folders of recipes/baselines.py, rank_evidence.py, train_student.py, … on the same data, "
            "whose answers stand in the table.",
            "free": True,
        },
    )

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(f"name is {self.name!r}; expected student, or student_ and letters, digits or _")
        if not self.seeds:
            raise UsageError("seeds is empty; expected one seed or more")
        if self.student == "sasrec" and self.dim % 2:
            raise UsageError(f"dim is {self.dim}; expected an even number: SASRec has two heads")
        if self.student != "sasrec" and self.n_thoughts:
            raise UsageError(f"n_thoughts is {self.n_thoughts} and student is {self.student}; thoughts take sasrec")
        if self.fewer_thoughts and max(self.fewer_thoughts) >= self.n_thoughts:
            raise UsageError(
                f"fewer_thoughts is {self.fewer_thoughts}; expected numbers below n_thoughts ({self.n_thoughts})"
            )
        if self.fuse and self.item_vectors == NO_VECTORS:
            raise UsageError("fuse is true and item_vectors is none; name the vectors")
        if self.least_events and self.item_vectors == NO_VECTORS:
            raise UsageError("least_events is set and item_vectors is none; name the vectors")

    @property
    def start(self) -> StudentSettings:
        """What the choice begins with."""
        return StudentSettings(self.learning_rate, self.dropout, self.dim, self.batch_size)

    @property
    def training(self) -> FitSettings:
        """What is not chosen."""
        return FitSettings(
            max_epochs=self.max_epochs,
            patience=self.patience,
            weight_decay=self.weight_decay,
            label_smoothing=self.label_smoothing,
            loss=self.loss,
            n_negatives=self.n_negatives,
            calibration=self.calibration,
            propensity_power=self.propensity_power,
            thought_annealing=self.thought_annealing,
        )


@dataclass
class DistillArguments:
    """What a student learns from, and how much that counts; of lists the best value on validation is taken."""

    teacher_cache: str = field(
        default="runs/toy/cache", metadata={"help": "Folder of recipes/cache_teacher.py on the same data."}
    )
    labels: list[float] = field(
        default_factory=lambda: [0.3, 0.5, 0.7],
        metadata={"bounds": Bounds(0, 1), "help": "Weights of the teacher's list, against the item chosen next."},
    )
    temperature: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"bounds": Bounds(above=0, most=100), "help": "Above 1 softens the teacher's list, below sharpens."},
    )
    top: int = field(
        default=0, metadata={"bounds": Bounds(0), "help": "Most of the teacher's items that count; 0 for all."}
    )
    within: Literal["catalog", "list", "union"] = field(
        default="catalog",
        metadata={"help": "What the student's softmax is over: all, the teacher's list, or that and its own top."},
    )
    gammas: list[float] = field(
        default_factory=lambda: [0.0, 0.0, 0.0],
        metadata={"bounds": Bounds(0, 1), "help": "DLLM2Rec's weights (.3 .5 .1): position, confidence, consistency."},
    )
    states: float = field(
        default=0.0, metadata={"bounds": Bounds(0, 100), "help": "Weight of aligning with decision states."}
    )
    reasonings: float = field(
        default=0.0, metadata={"bounds": Bounds(0, 100), "help": "Weight of aligning with vectors of reasonings."}
    )
    alignment: Alignment = field(default="cosine", metadata={"help": "How vectors are compared."})

    def __post_init__(self) -> None:
        if not self.labels or not self.temperature:
            raise UsageError("labels or temperature is empty; expected one value or more")
        if len(self.gammas) != 3 or (any(self.gammas) and not any(self.gammas[:2])):
            raise UsageError(
                f"gammas is {self.gammas}; expected three weights, of position, confidence and consistency, with one "
                "of the first two above 0, or none at all"
            )

    @property
    def settings(self) -> DistillSettings:
        """What is not chosen, with the first of what is."""
        position, confidence, consistency = self.gammas
        return DistillSettings(
            labels=self.labels[0],
            temperature=self.temperature[0],
            top=self.top,
            within=self.within,
            gammas=(position, confidence, consistency),
            states=self.states,
            reasonings=self.reasonings,
            alignment=self.alignment,
        )

    @property
    def alternatives(self) -> dict[str, Sequence[Any]]:
        """What is tried besides, one after the other."""
        values = {"labels": self.labels[1:], "temperature": self.temperature[1:]}
        return {name: others for name, others in values.items() if others}
