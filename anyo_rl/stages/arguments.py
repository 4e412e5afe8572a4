"""Settings of recipes, beside TRL's own arguments."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState

from anyo_rl.catalog.item_tokens import Kind as ItemTokenKind
from anyo_rl.catalog.item_vectors import VectorKind
from anyo_rl.encoders.titles import ItemEncoder
from anyo_rl.ranking.written import RankerKind
from anyo_rl.reasoning.alignment import Alignment
from anyo_rl.reasoning.kinds.kind import Kind
from anyo_rl.reasoning.kinds.load import load_kind
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import Bounds, mapping_of
from anyo_rl.sampling.transformers import CACHE_TOKENS
from anyo_rl.search.answers import Mode
from anyo_rl.stages.causal_arguments import CausalArguments
from anyo_rl.stages.fusion_arguments import FusionArguments
from anyo_rl.stages.scratch_arguments import ScratchArguments
from anyo_rl.stages.written_arguments import WrittenArguments
from anyo_rl.training.advantages.credit import WITHOUT_SOURCE, Advantages, Credit
from anyo_rl.training.advantages.ppo import CriticKind, KlPlace, Ppo, StepRewards
from anyo_rl.training.advantages.process import ProcessReduction
from anyo_rl.training.item_loss import ItemLoss
from anyo_rl.training.rewards.timeout import OnTimeout
from anyo_rl.training.sft import SftItemLoss, SftLoss
from anyo_rl.values.prm import Prm
from anyo_rl.values.source import StepSource, StepValueKind


@dataclass
class TeacherArguments(WrittenArguments, CausalArguments, ScratchArguments):
    """How the teacher is made (where no path is given), validated and evaluated."""

    marker_token: str | None = field(
        default=None, metadata={"help": "The added token that serves as the marker; `->` or `</think>` if unset."}
    )
    item_tokens: ItemTokenKind = field(
        default="title",
        metadata={
            "help": "What the teacher answers with: titles; item, an added token for each item; or semantic ids, "
            "added tokens that items share."
        },
    )
    item_vectors: VectorKind = field(
        default="mean",
        metadata={
            "help": "Where the vectors of added tokens start: at the mean of the teacher's; or from those of titles "
            "(text), from who chose what (collaborative), or both. Semantic ids are computed of the same, of titles "
            "for mean."
        },
    )
    title_vectors: ItemEncoder = field(
        default="teacher", metadata={"help": "What embeds titles for these: the teacher's own vectors, or minilm."}
    )
    semantic_id_column: str | None = field(
        default=None, metadata={"help": "Column of published semantic ids; computed (of item_vectors) if unset."}
    )
    semantic_id_levels: int = field(
        default=3, metadata={"bounds": Bounds(1), "help": "Codes of a computed semantic id."}
    )
    semantic_id_codes: int | None = field(
        default=None,
        metadata={"bounds": Bounds(2), "help": "Codes of a level, a power of two; 256 or, below 2,048 items, fewer."},
    )
    max_reasoning_tokens: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(1, 10**6),
            "help": "Longest reasoning, the marker included (GRPO's max_completion_length); if unset 64, or 512 for "
            "chat models that think (</think> is the marker).",
        },
    )
    reasoning_kind: str = field(
        default="steps",
        metadata={
            "help": "How teachers reason: a kind of docs/kinds.md, a dotted path, or path/to/file.py:name. It says "
            "what prompts show, too."
        },
    )
    kind_settings: dict[str, object] | str | None = field(
        default=None, metadata={"help": "Settings of the kind: a mapping in YAML, JSON as a flag."}
    )
    n_thoughts: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(0, 64),
            "help": "Thoughts without words, of the kind latent (docs/latent.md); evaluate.py may ask with fewer.",
        },
    )
    early_answer_share: float = field(
        default=0.0,
        metadata={
            "bounds": Bounds(0, 1),
            "help": "Share of the rationales that SFT also answers early: what forced answers need to mean much.",
        },
    )
    sft_item_loss: SftItemLoss = field(
        default="constrained",
        metadata={
            "help": "What SFT trains of an item: constrained, its probability among the items; tokens, each of its "
            "tokens among the whole vocabulary, for teachers that write their items."
        },
    )
    sft_item_weight: float = field(
        default=0.1,
        metadata={
            "bounds": Bounds(0),
            "help": "Weight of an item in SFT on reasonings; a direct teacher learns nothing else.",
        },
    )
    sft_reasoning_weight: float = field(
        default=1.0,
        metadata={"bounds": Bounds(0), "help": "Weight of the reasonings' tokens in SFT, on average over them."},
    )
    alignment_tasks: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What SFT and the sequence stage teach of added tokens besides: title and attributes lead to the "
            "item, words from its token to both (docs/pretrain.md)."
        },
    )
    alignment_share: float = field(
        default=0.2, metadata={"bounds": Bounds(0, 0.99), "help": "Share of all rows that these tasks have."}
    )
    eval_mode: Mode = field(default="greedy", metadata={"help": "How validation users are answered: greedy, mixture."})
    sampling_tokens: int = field(
        default=CACHE_TOKENS,
        metadata={
            "bounds": Bounds(1),
            "help": "Tokens in the cache at once where transformers sample outside of TRL: in validation, evaluation "
            "and jobs. Bounds memory (anyo_rl.plan counts it).",
            "free": True,
        },
    )
    validation_node_budget: int = field(
        default=16_384,
        metadata={
            "bounds": Bounds(0),
            "help": "Tree nodes read for a validation user's rank, at most; 0 for no budget.",
        },
    )
    n_paths: int = field(
        default=8,
        metadata={
            "bounds": Bounds(1, 10_000),
            "help": "Paths of the mixture.",
            "free": lambda args: args.eval_mode != "mixture",
        },
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "bounds": Bounds(0),
            "help": "Stop after this many validations without a gain; 0 trains to the end.",
        },
    )
    baselines_from: str | None = field(
        default=None,
        metadata={
            "help": "Run folder of recipes/baselines.py on the same data, whose answers stand in the table in place "
            "of untuned ones.",
            "free": True,
        },
    )
    evidence: str | None = field(
        default=None,
        metadata={
            "help": "Run folder of recipes/rank_evidence.py on the same data: GRPO, PPO and STaR train on ranks by "
            "teacher and evidence together, and teachers are evaluated with it besides.",
        },
    )

    def kind(self) -> Kind:
        """The kind of reasoning.

        Raises:
            UsageError: there is no such kind, or its settings are wrong.
        """
        return load_kind(self.reasoning_kind, self._kind_settings)

    @property
    def _kind_settings(self) -> dict[str, object]:
        settings = mapping_of("kind_settings", self.kind_settings, '{"tokens": 64}') or {}
        return settings if self.n_thoughts is None else settings | {"n_thoughts": self.n_thoughts}

    @property
    def made_with_kind(self) -> dict[str, object]:
        """What says of answers by which kind of reasoning they were made: nothing for `steps`, as it always was."""
        settings = {"kind_settings": self._kind_settings} if self._kind_settings else {}
        return {} if self.reasoning_kind == "steps" else {"reasoning_kind": self.reasoning_kind, **settings}

    @property
    def alignment(self) -> Alignment:
        """What is taught of added tokens besides.

        Raises:
            UsageError: a task is unknown, or the share is out of its range.
        """
        return Alignment(self.alignment_tasks, self.alignment_share)

    @property
    def sft_loss(self) -> SftLoss:
        """What SFT on reasonings minimises.

        Raises:
            ValueError: a weight is out of its range.
        """
        return SftLoss(self.sft_item_loss, self.sft_item_weight, self.sft_reasoning_weight)


@dataclass
class RankArguments:
    """How far the ranks of sampled paths are told apart."""

    rank_cap: int = field(
        default=1000,
        metadata={
            "bounds": Bounds(0),
            "help": "Ranks beyond it count as the one after it while training; 0 for no cap.",
        },
    )
    rank_node_budget: int = field(
        default=4096,
        metadata={
            "bounds": Bounds(0),
            "help": "Tree nodes evaluated for the rank of one completion while training; 0 for no budget.",
        },
    )


@dataclass
class ComparisonArguments:
    """What a run starts from, and what stands beside its teacher."""

    sft_config: str | None = field(
        default=None,
        metadata={"help": "SFT recipe config of the warm start, beside this config or from here.", "free": True},
    )
    train_direct: bool = field(
        default=True,
        metadata={"help": "Also train the same teacher without reasoning, to compare with.", "free": True},
    )
    baselines: bool = field(
        default=True, metadata={"help": "Also evaluate popularity, item-kNN and SASRec.", "free": True}
    )


@dataclass
class ReasonerArguments(RankArguments, FusionArguments, ComparisonArguments):
    """What reinforcement rewards and what trains the answer."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["ndcg"],
        metadata={"help": "Short names, dotted paths or path/to/file.py:name; docs/rewards.md lists what there is."},
    )
    reward_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Parameters of rewards: name to a mapping (in YAML)."}
    )
    reward_schedules: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Weights that change: name to {from: 0.0, to: 1.0, steps: 100}, in optimiser steps (in YAML)."
        },
    )
    reward_timeout_s: float | None = field(
        default=None,
        metadata={
            "bounds": Bounds(above=0),
            "help": "Longest wait for one completion's reward, of rewards that call out; no limit if unset.",
        },
    )
    reward_on_timeout: OnTimeout = field(
        default="none",
        metadata={"help": "What a completion gets then: none (no reward), floor, or raise, which stops the run."},
    )
    ranker: RankerKind = field(
        default="likelihood",
        metadata={
            "help": "likelihood reads the answer off; with match or embedding the item is sampled too, and ranked by "
            "itself (item_loss none)."
        },
    )
    item_loss: ItemLoss = field(
        default="best", metadata={"help": "Which paths train the answer: none, best, all, mixture."}
    )
    item_loss_weight: float = field(default=0.1, metadata={"bounds": Bounds(0), "help": "Weight of the item loss."})
    step_values: StepValueKind = field(
        default="forced_answer",
        metadata={"help": "What a state between steps is worth: forced_answer, monte_carlo, prm."},
    )
    prm: str | None = field(default=None, metadata={"help": "Folder of the PRM (prm/model of its run)."})
    n_continuations: int = field(
        default=4, metadata={"bounds": Bounds(1), "help": "Reasonings sampled from each state by monte_carlo."}
    )
    held_out_of_sft: bool = field(
        default=False,
        metadata={
            "help": "Train on examples without rationales alone: SFT knows the targets of the others by heart, and "
            "there is nothing to earn."
        },
    )
    min_gain_spread: float = field(
        default=0.0,
        metadata={
            "bounds": Bounds(0),
            "help": "Leave out examples whose gains over 4 sampled paths differ by less than this.",
        },
    )

    def source(self) -> StepSource:
        """What states between steps are worth; a PRM is loaded whole, on this process's device.

        Raises:
            ValueError: a setting is unknown or out of its range, or there is no PRM.
        """
        with whole_weights():
            prm = Prm.load(self.prm, device=PartialState().device) if self.prm else None
        return StepSource(self.step_values, self.n_continuations, prm)


@dataclass
class GrpoArguments(ReasonerArguments):
    """What GRPO credits a step with."""

    advantages: Advantages = field(
        default="outcome",
        metadata={
            "help": "What a step is credited with: the path's outcome; progress: the outcome less what was gained "
            "before the step; process: its own gain and those after it; none: nothing, so that the item loss alone "
            "trains (docs/process.md)."
        },
    )
    process_reduction: ProcessReduction = field(
        default="mean", metadata={"help": "Of the gains of process: mean, or sum, which pays for more steps."}
    )

    def method(self) -> Credit:
        """What the tokens of a reasoning are credited with.

        Raises:
            ValueError: as `source`.
        """
        source = None if self.advantages in WITHOUT_SOURCE else self.source()
        return Credit(self.advantages, source, self.process_reduction)


@dataclass
class PpoArguments(ReasonerArguments):
    """How PPO estimates what an action was worth."""

    gamma: float = field(default=1.0, metadata={"bounds": Bounds(0, 1), "help": "Discount of a token."})
    lam: float = field(
        default=0.95, metadata={"bounds": Bounds(0, 1), "help": "Lambda of generalised advantage estimation."}
    )
    vf_coef: float = field(default=0.1, metadata={"bounds": Bounds(0), "help": "Weight of the critic's loss."})
    critic_learning_rate: float | None = field(
        default=None,
        metadata={
            "bounds": Bounds(above=0, most=1),
            "help": "Learning rate of the critic; 10 times the policy's if unset.",
        },
    )
    cliprange_value: float = field(
        default=0.2, metadata={"bounds": Bounds(above=0), "help": "How far a value may move from the one before."}
    )
    whiten_advantages: bool = field(
        default=True, metadata={"help": "Centre and scale advantages over the batch of all processes."}
    )
    kl: KlPlace = field(
        default="reward", metadata={"help": "Where beta times the divergence from the reference goes: reward, loss."}
    )
    critic: CriticKind = field(
        default="head",
        metadata={"help": "A value head on the teacher, or a separate model made from the same weights."},
    )
    step_rewards: StepRewards = field(
        default="none",
        metadata={
            "help": "What a step is rewarded with besides the outcome: none; shaping: the difference its step_values "
            "make; scores: its step_value over the number of steps."
        },
    )
    step_reward_weight: float = field(default=1.0, metadata={"bounds": Bounds(0), "help": "Weight of step_rewards."})

    def method(self) -> Ppo:
        """The settings of PPO.

        Raises:
            ValueError: as `source` and `Ppo`.
        """
        own = {item.name: getattr(self, item.name) for item in dataclasses.fields(Ppo) if item.name != "source"}
        return Ppo(**own, source=None if self.step_rewards == "none" else self.source())
