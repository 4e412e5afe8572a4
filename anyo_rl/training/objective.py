"""What reinforcement optimises, beside TRL's own settings."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from anyo_rl.evidence.fusion import Fusion
from anyo_rl.evidence.reweighing import ReweighedRanker
from anyo_rl.ranking.orders import OrderRanker
from anyo_rl.ranking.protocol import Ranker
from anyo_rl.run.settings import UsageError
from anyo_rl.training.advantages.credit import Credit
from anyo_rl.training.advantages.ppo import Ppo
from anyo_rl.training.item_loss import ItemLoss

SUM_FIRST = "sum_then_normalize"


@dataclass(frozen=True)
class Objective:
    """What reinforcement makes of a sampled batch.

    Attributes:
        method: what the tokens of a reasoning are credited with: GRPO's `Credit`, or `Ppo`, for which the model has a
            critic (`anyo_rl.training.critic`).
        written_ranker: ranks what the teacher writes, which goes on to an item then; `None` reads the answer off. A
            reweighed one learns whose completions they are.
        item_loss: which paths of a group train the answer: `none`, `best`, `all` or `mixture`.
        item_loss_weight: its weight beside the policy loss.
        rank_cap: ranks beyond it count as the one after it; `None` for no cap.
        rank_node_budget: tree nodes evaluated for one completion, at most; `None` for no budget.
        fusion: evidence that ranks are taken together with; `None` for those of the teacher by itself.

    Raises:
        ValueError: an item loss or evidence for items that are written.
    """

    method: Credit | Ppo = field(default_factory=Credit)
    written_ranker: Ranker | ReweighedRanker | None = None
    item_loss: ItemLoss = "best"
    item_loss_weight: float = 0.1
    rank_cap: int | None = None
    rank_node_budget: int | None = None
    fusion: Fusion | None = None

    def __post_init__(self) -> None:
        if self.written_ranker is not None:
            check_item_loss(self.item_loss)
            if self.fusion is not None:
                raise UsageError("evidence is fused with answers that are read off: set ranker to likelihood")

    @property
    def held_to_catalog(self) -> bool:
        """Whether items are written, and nothing else behind the marker; orders are written freely."""
        return self.written_ranker is not None and not isinstance(self.written_ranker, OrderRanker)

    @property
    def ppo(self) -> Ppo | None:
        """PPO's settings, where it is the method."""
        return self.method if isinstance(self.method, Ppo) else None

    @property
    def credits_steps(self) -> bool:
        """Whether advantages differ along a completion."""
        return credits_steps(self.method)


def credits_steps(method: Credit | Ppo) -> bool:
    """Whether advantages differ along a completion."""
    return isinstance(method, Ppo) or method.source is not None


def check_item_loss(item_loss: ItemLoss) -> None:
    """Refuses an item loss for items that are written.

    Raises:
        UsageError: there is one.
    """
    if item_loss != "none":
        raise UsageError(
            "an item loss trains an answer that is read off; set item_loss to none, or ranker to likelihood"
        )


def check_credit(method: Credit | Ppo, args: GRPOConfig, *, written: bool) -> None:
    """Refuses credit for steps where there are none, or where rewards are not one sum.

    Raises:
        UsageError: that is asked for.
    """
    if credits_steps(method) and (written or args.multi_objective_aggregation != SUM_FIRST):
        raise UsageError(
            f"credit for steps and PPO need an answer that is read off, and rewards that are summed before they are "
            f"normalised: set ranker to likelihood and multi_objective_aggregation to {SUM_FIRST}, or take GRPO with "
            "advantages outcome"
        )


def check_writing(args: GRPOConfig) -> None:
    """Refuses settings under which items cannot be written.

    Raises:
        ValueError: there is one.
    """
    if args.use_vllm or args.top_k or args.min_p or args.repetition_penalty != 1.0:
        raise UsageError(
            "items are written with transformers, by temperature and top_p alone; unset use_vllm, top_k, min_p and "
            "repetition_penalty, or set ranker to likelihood"
        )
