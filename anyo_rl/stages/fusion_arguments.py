"""Settings of training with evidence."""

from dataclasses import dataclass, field

from anyo_rl.run.settings import Bounds


@dataclass
class FusionArguments:
    """How a teacher is trained together with the evidence of `TeacherArguments.evidence`."""

    fusion_alpha: float | None = field(
        default=None,
        metadata={
            "bounds": Bounds(above=0, most=100),
            "help": "Weight of the teacher beside the evidence in training; if unset the best on validation when the "
            "stage starts.",
        },
    )
    headroom: list[int] | None = field(
        default=None,
        metadata={
            "bounds": Bounds(1),
            "help": "Two ranks, such as 2 50: train on examples whose target the evidence ranks between them, where "
            "it is neither right nor hopeless.",
        },
    )
