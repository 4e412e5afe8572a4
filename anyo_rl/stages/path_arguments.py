"""Settings of recipes that train on sampled paths."""

from dataclasses import dataclass, field
from typing import Literal

from anyo_rl.run.settings import Bounds
from anyo_rl.stages.arguments import ComparisonArguments, RankArguments
from anyo_rl.stages.fusion_arguments import FusionArguments


@dataclass
class PathArguments(RankArguments, FusionArguments, ComparisonArguments):
    """Which paths are sampled, and which of them are trained on."""

    n_samples: int = field(
        default=4,
        metadata={"bounds": Bounds(1), "help": "Paths sampled of each example (STaR: in a round).", "free": True},
    )
    max_examples: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(1),
            "help": "Most training examples, drawn anew for each round of STaR; all if unset.",
            "free": True,
        },
    )
    n_shards: int = field(
        default=16, metadata={"bounds": Bounds(1), "help": "Parts that sampling comes in; a kill costs one."}
    )
    engine: Literal["hf", "vllm"] = field(
        default="hf",
        metadata={"help": "Samples with transformers, or with a vLLM engine, which each round of STaR starts."},
    )
    gpu_memory_utilization: float = field(
        default=0.6,
        metadata={
            "bounds": Bounds(above=0, most=1),
            "help": "Share of a GPU's memory for the vLLM engine, beside the model that ranks.",
        },
    )
    least_gain: float = field(
        default=0.5, metadata={"bounds": Bounds(0, 1), "help": "NDCG of the target that a path needs: .5 is rank 3."}
    )
    min_beyond_evidence: float | None = field(
        default=None,
        metadata={
            "bounds": Bounds(-1, 1),
            "help": "With evidence: what a path's gain has to be above the evidence's own, at least.",
        },
    )
    most_per_example: int = field(default=2, metadata={"bounds": Bounds(1), "help": "Most paths kept of an example."})
    most_per_item: int = field(
        default=0,
        metadata={
            "bounds": Bounds(0),
            "help": "Most paths kept of a target item, against popular ones; 0 for no limit.",
        },
    )
    least_agreement: int = field(
        default=1,
        metadata={
            "bounds": Bounds(1),
            "help": "Good paths of an example with the same steps that a kept one needs, against lucky ones.",
        },
    )
    rationalise: bool = field(
        default=True, metadata={"help": "Sample again, with the target as a hint, where no path was kept."}
    )
    n_hinted: int = field(
        default=2, metadata={"bounds": Bounds(1), "help": "Paths sampled with a hint of each such example."}
    )


@dataclass
class StarArguments(PathArguments):
    """How a teacher makes its own training data, round by round."""

    temperature: float = field(default=1.0, metadata={"bounds": Bounds(0, 100), "help": "At which paths are sampled."})
    top_p: float = field(
        default=1.0, metadata={"bounds": Bounds(above=0, most=1), "help": "Nucleus, above 0 and up to 1."}
    )
    rounds: int = field(
        default=3, metadata={"bounds": Bounds(1), "help": "Most rounds; 1 without rationalise is rejection sampling."}
    )
    hint_share: float = field(
        default=0.0,
        metadata={
            "bounds": Bounds(0, 1),
            "help": "Share of the rationales that SFT also shows with the target as a hint.",
        },
    )
    start_from: Literal["base", "last"] = field(
        default="base", metadata={"help": "Each round trains the teacher STaR began with, or the last round's."}
    )
    mix_rationales: bool = field(default=True, metadata={"help": "Train on the rationales too in each round."})
    patience: int = field(
        default=1, metadata={"bounds": Bounds(1), "help": "Stop after this many rounds without a gain on validation."}
    )
