"""The stages that can stand in a table: their names and order, how they answer, what a model card says of them."""

import re
from dataclasses import dataclass
from typing import Literal

from anyo_rl.search.answers import Mode

REASONING_MODES: tuple[Mode, ...] = ("greedy", "mixture")
Writing = Literal["catalog", "free", "none"]  # how teachers write items: held to the catalog, any text, not at all
FUSED_ROW = "_fused"  # behind a stage's name, for its row with evidence
WRITTEN = re.compile(r"(?P<stage>.+?)(?:_freely)?_written(?:_(?P<by>.+))?")


@dataclass(frozen=True)
class Stage:
    """What is known of a stage beforehand.

    Attributes:
        name: in run folders and tables.
        made_by: what made it, for its model card; `None` for what is no teacher.
        reasons: whether it reasons before it answers.
        learned_ranks: whether it learned from the ranks of its own reasonings.
        control: whether it is there to tell what another stage's gain comes from.
    """

    name: str
    made_by: str | None = None
    reasons: bool = False
    learned_ranks: bool = False
    control: bool = False

    @property
    def after_sft(self) -> bool:
        """Whether it goes on from the SFT stage of its run."""
        return self.learned_ranks or self.name in (SFT_MORE.name, ITEM_ONLY.name)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """How it is asked."""
        return REASONING_MODES if self.reasons else ("plain",)


SFT = Stage("sft", "supervised fine-tuning on rationales", reasons=True)
STAR = Stage(
    "star",
    "STaR: rounds of fine-tuning on its own reasonings that led to the target",
    reasons=True,
    learned_ranks=True,
)
DPO = Stage(
    "dpo", "DPO on its own reasonings, the best of an example against the worst", reasons=True, learned_ranks=True
)
GRPO = Stage(
    "grpo", "GRPO on the rank that it gives to the item the user really chose", reasons=True, learned_ranks=True
)
PPO = Stage("ppo", "PPO on the rank that it gives to the item the user really chose", reasons=True, learned_ranks=True)
TEACHER = Stage("teacher", reasons=True)  # what a small model learns from
TAUGHT = Stage("taught", "supervised fine-tuning of a small model on a teacher's reasonings", reasons=True)
DISTILLED = Stage("distilled", "on-policy distillation of a teacher's reasoning into a small model", reasons=True)
PRETRAIN = Stage("pretrain", "the next item at every event of whole sequences, answered at once")
DIRECT = Stage("direct", "supervised fine-tuning to answer at once, without reasoning")
DIRECT_ENSEMBLE = Stage("direct_ensemble")
# Controls of a fair comparison: what gains where nothing is reasoned, and what gains without reinforcement.
POST_HOC = Stage(
    "post_hoc", "supervised fine-tuning to answer first and to write the rationale after it", control=True
)
FILLER = Stage(
    "filler", "supervised fine-tuning on fillers of the rationales' lengths in their place", reasons=True, control=True
)
SFT_MORE = Stage("sft_more", "SFT on the same rationales, continued", reasons=True, control=True)
ITEM_ONLY = Stage("item_only", "GRPO with advantages of zero: its item loss alone", reasons=True, control=True)
CONTROLS = (SFT_MORE, ITEM_ONLY, POST_HOC, FILLER)
INCOMING = Stage("incoming")  # candidates as they came in, where teachers are asked about these
EVIDENCE = Stage("evidence")
STUDENT = Stage("student")  # and what learned in another way, as `student_<how>`
BASELINES = ("popularity", "item_knn", "ease", "sasrec", "gru4rec")
# In the order of tables. Stages of other names come after these, and oracles last.
STAGES = (
    *(SFT, STAR, DPO, GRPO, PPO, TEACHER, TAUGHT, DISTILLED, *CONTROLS, PRETRAIN, DIRECT, DIRECT_ENSEMBLE),
    *(STUDENT, INCOMING, EVIDENCE, *map(Stage, BASELINES)),
)
ORACLE, INTENT_ORACLE = "oracle", "intent_oracle"
DRAW_NOTHING = ("popularity", "item_knn", "ease", ORACLE, INTENT_ORACLE)  # one seed says all of them

STAGE_ORDER = tuple(stage.name for stage in STAGES)
TEACHERS = tuple(stage.name for stage in STAGES if stage.made_by is not None)
RANK_TRAINED = tuple(stage.name for stage in STAGES if stage.learned_ranks)
COMPARED = tuple(stage.name for stage in (GRPO, PPO, DPO, STAR))  # the first that a run has is set against SFT
# Whom somebody asks who names no stage: the first of these that a run has.
ASKED_FIRST = (*COMPARED, *(stage.name for stage in (DISTILLED, TAUGHT, SFT, DIRECT, PRETRAIN, *CONTROLS)))

# What a model card shows of a stage's settings, as far as the stage has them.
CARD_SETTINGS = (
    *("learning_rate", "lr_scheduler_type", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16"),
    *("num_generations", "temperature", "beta", "loss_type", "scale_rewards", "reward_funcs", "reward_weights"),
    *("ranker", "item_loss", "item_loss_weight", "advantages", "step_values", "rounds", "n_samples", "least_gain"),
    *("gamma", "lam", "kl", "critic", "step_rewards", "step_reward_weight"),
    *("start_from", "pair_gain", "least_gap", "seed"),
)


def stage_of(name: str) -> Stage:
    """The stage of a name; one that is not known is a teacher that reasons, made by whatever it is called."""
    if is_student(name):
        return Stage(name)
    return next((stage for stage in STAGES if stage.name == name), Stage(name, name, reasons=True))


def table_order(names: list[str]) -> list[str]:
    """Known stages in their order, students as given among them, then the others as given, the oracles last."""

    def place(name: str) -> tuple[int, bool]:
        known = STUDENT.name if is_student(name) else name
        return (STAGE_ORDER.index(known) if known in STAGE_ORDER else len(STAGE_ORDER), is_oracle(name))

    return sorted(names, key=place)  # a stable sort: the others stay as given


def is_student(name: str) -> bool:
    """Whether a row is of a student, whatever it learned from."""
    return name == STUDENT.name or name.startswith(f"{STUDENT.name}_")


def is_oracle(name: str) -> bool:
    """Whether a row is of one who knows the world."""
    return ORACLE in name


def written_row(stage: str, writing: Writing, by: str | None = None) -> str:
    """The name of the row of what a teacher wrote.

    Args:
        stage: whose teacher it is.
        writing: how.
        by: what its distances are reweighed by.

    >>> written_row("sft", "free", "item_knn")
    'sft_freely_written_item_knn'
    """
    name = f"{stage}{'_freely' if writing == 'free' else ''}_written"
    return name if by is None else f"{name}_{by}"


def of_written(name: str) -> tuple[str, str | None] | None:
    """The stage of a row of what a teacher wrote, and what stands beside it; `None` for other rows.

    >>> of_written("sft_freely_written_item_knn"), of_written("sft_written"), of_written("sft_fused")
    (('sft', 'item_knn'), ('sft', None), None)
    """
    found = WRITTEN.fullmatch(name)
    return None if found is None else (found["stage"], found["by"])
