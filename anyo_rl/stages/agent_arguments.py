"""Settings of recipes/agent_teacher.py, beside TRL's own arguments."""

from dataclasses import dataclass, field
from typing import Literal

from anyo_rl.agent.episodes import Limits
from anyo_rl.data.toy.goals import GoalConfig
from anyo_rl.run.settings import Bounds, mapping_of
from anyo_rl.stages.scratch_arguments import ScratchArguments

Protocol = Literal["text", "tools"]


@dataclass
class AgentArguments(ScratchArguments):
    """The world of goals, the tools, how far episodes may go, and how the agent begins."""

    n_offers: int = field(
        default=24, metadata={"bounds": Bounds(4, 40), "help": "Offers of each of the six categories."}
    )
    n_travellers: int = field(default=120, metadata={"bounds": Bounds(1, 10**6), "help": "Travellers who ask."})
    n_train_goals: int = field(default=1500, metadata={"bounds": Bounds(1, 10**6), "help": "Goals to learn from."})
    n_validation_goals: int = field(
        default=60, metadata={"bounds": Bounds(1, 10**6), "help": "Goals that choose the checkpoint."}
    )
    n_test_goals: int = field(
        default=300, metadata={"bounds": Bounds(1, 10**6), "help": "Goals that teachers are compared on."}
    )
    world_seed: int = field(default=0, metadata={"bounds": Bounds(0, 2**32 - 1), "help": "Seed of the world."})
    n_solved: int = field(
        default=200,
        metadata={"bounds": Bounds(1, 10**6), "help": "Training goals whose best plan SFT is shown, call by call."},
    )
    n_names: int = field(
        default=20,
        metadata={
            "bounds": Bounds(1, 10_000),
            "help": "How often SFT is shown each of these plans, in other names but for the first time.",
        },
    )
    protocol: Protocol = field(
        default="text",
        metadata={
            "help": "How tools are called: text, a line `name: argument` of the teacher's own; or tools, by the chat "
            "template of a model that knows tools (TRL's environment_factory), without SFT."
        },
    )
    max_turns: int = field(
        default=10, metadata={"bounds": Bounds(1, 1000), "help": "Most lines of an episode; then it has to answer."}
    )
    max_line_tokens: int = field(default=32, metadata={"bounds": Bounds(1, 10**5), "help": "Longest line or answer."})
    max_episode_tokens: int = field(
        default=384, metadata={"bounds": Bounds(2, 10**6), "help": "Longest episode, results included."}
    )
    max_result_chars: int = field(
        default=300, metadata={"bounds": Bounds(1, 10**6), "help": "Longest result of a tool; the rest is cut off."}
    )
    n_results: int = field(
        default=4, metadata={"bounds": Bounds(1, 100), "help": "Offers that search and similar name at most."}
    )
    tool_timeout_s: float | None = field(
        default=None,
        metadata={
            "bounds": Bounds(above=0),
            "help": "How long a tool may take, in seconds; no limit if unset. The tools of the world need none.",
        },
    )
    sft_steps: int = field(default=400, metadata={"bounds": Bounds(1, 10**7), "help": "Updates of SFT."})
    sft_batch_size: int = field(
        default=32, metadata={"bounds": Bounds(1, 10**5), "help": "Plans of an update of SFT."}
    )
    sft_learning_rate: float = field(
        default=2e-3, metadata={"bounds": Bounds(0, 1), "help": "Learning rate of SFT; it falls to 0."}
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["plan_value"],
        metadata={"help": "Rewards: short names, dotted paths, or path/to/file.py:name (docs/rewards.md)."},
    )
    reward_kwargs: dict[str, dict[str, object]] | str | None = field(
        default=None, metadata={"help": "Parameters of rewards by name: a mapping in YAML, JSON as a flag."}
    )
    train_no_tools: bool = field(
        default=True,
        metadata={"help": "Also train the same model without tools, with as many FLOPs.", "free": True},
    )
    marker_token: str | None = field(
        default=None, metadata={"help": "The added token that serves as the marker; `->` if unset."}
    )
    tiny_vocab_size: int = field(
        default=600, metadata={"bounds": Bounds(259, 10**6), "help": "Tokens of a tokenizer made from scratch."}
    )

    @property
    def config(self) -> GoalConfig:
        """The world."""
        splits = (self.n_train_goals, self.n_validation_goals, self.n_test_goals)
        return GoalConfig(self.n_offers, self.n_travellers, *splits, self.world_seed)

    @property
    def limits(self) -> Limits:
        """How far an episode may go."""
        return Limits(self.max_turns, self.max_line_tokens, self.max_episode_tokens)

    @property
    def parameters(self) -> dict[str, dict[str, object]]:
        """Parameters of rewards by name.

        Raises:
            UsageError: they are no mapping.
        """
        return mapping_of("reward_kwargs", self.reward_kwargs, '{"plan_value": {"penalty": 0.1}}') or {}
