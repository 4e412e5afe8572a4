"""What reinforcement optimises, beside TRL's own settings."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from anyo_rl.ranking.protocol import Ranker
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
        written_ranker: ranks what the teacher writes, which goes on to an item then; `None` reads the answer off.
        item_loss: which paths of a group train the answer: `none`, `best`, `all` or `mixture`.
        item_loss_weight: its weight beside the policy loss.
        rank_cap: ranks beyond it count as the one after it; `None` for no cap.
        rank_node_budget: tree nodes evaluated for one completion, at most; `None` for no budget.

    Raises:
        ValueError: an item loss for items that are written.
    """

    method: Credit | Ppo = field(default_factory=Credit)
    written_ranker: Ranker | None = None
    item_loss: ItemLoss = "best"
    item_loss_weight: float = 0.1
    rank_cap: int | None = None
    rank_node_budget: int | None = None

    def __post_init__(self) -> None:
        if self.written_ranker is not None and self.item_loss != "none":
            raise ValueError(
                "an item loss trains an answer that is read off; set item_loss to none, or ranker to likelihood"
            )

    @property
    def ppo(self) -> Ppo | None:
        """PPO's settings, where it is the method."""
        return self.method if isinstance(self.method, Ppo) else None

    @property
    def credits_steps(self) -> bool:
        """Whether advantages differ along a completion."""
        return self.ppo is not None or self.method.source is not None


def check_writing(args: GRPOConfig) -> None:
    """Refuses settings under which items cannot be written.

    Raises:
        ValueError: there is one.
    """
    if args.use_vllm or args.top_k or args.min_p or args.repetition_penalty != 1.0:
        raise ValueError(
            "items are written with transformers, by temperature and top_p alone; unset use_vllm, top_k, min_p and "
            "repetition_penalty, or set ranker to likelihood"
        )
