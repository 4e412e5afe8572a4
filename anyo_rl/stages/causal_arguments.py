"""Settings of the causal report."""

from dataclasses import dataclass, field

from anyo_rl.run.settings import Bounds


@dataclass
class CausalArguments:
    """Whether histories and reasonings are changed, to see what follows from what."""

    causal_examples: int = field(
        default=0,
        metadata={
            "bounds": Bounds(0),
            "help": "Test examples of the causal report of each teacher that reasons: does its reasoning follow the "
            "history, and its item the reasoning (docs/causal.md)? 0 for no report.",
            "free": True,
        },
    )
