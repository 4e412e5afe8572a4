"""Validation NDCG@10 while training, for every trainer alike, in place of an evaluation loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate.utils import gather_object
from torch import nn
from transformers import Trainer

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.metrics.ranking import mean_metrics, per_user_metrics
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import How, answer
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.loop.flops import validating
from anyo_rl.training.loop.weights import gathered

METRIC = "ndcg@10"


@dataclass(frozen=True)
class Validation:
    """What is measured on validation users.

    Attributes:
        rows: validation examples (`anyo_rl.reasoning.rows.make_rows`).
        catalog: the catalog.
        tokens: the teacher's tokenizer and marker.
        how: how the teacher answers; the draws of a mixture are the same each time, so that measurements compare.
    """

    rows: Sequence[Row]
    catalog: Catalog
    tokens: Tokens
    how: How

    def ranks(self, model: nn.Module, share: slice = slice(None)) -> list[int]:
        """Ranks of a share of the validation users' targets."""
        answers = answer(
            self.rows[share],
            LikelihoodRanker(self.catalog, model),
            TransformersSampler(model, self.tokens),
            self.tokens,
            self.how,
        )
        return answers.ranks_U.tolist()


def run_validation(trainer: Trainer, validation: Validation, prefix: str = "eval") -> dict[str, float]:
    """Measures, logs and hands the metrics to the trainer's callbacks, as `Trainer.evaluate` does with a loss.

    Users are shared out over the processes. Best checkpoint, early stopping and reports work by the names
    `eval_ndcg@10`, `eval_hr@10`, `eval_mrr`.
    """
    accelerator = trainer.accelerator
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    with gathered(trainer.model_wrapped, accelerator) as model, validating(trainer):
        ranks = validation.ranks(model, share)
    everyone = np.array(gather_object(ranks) if accelerator.num_processes > 1 else ranks)
    means = mean_metrics(per_user_metrics(everyone, cutoffs=(10,)))
    metrics = {f"{prefix}_{name}": value for name, value in means.items()}
    # Not the trainer's own `log`: TRL's would put the pending training metrics into this row, and forget them.
    Trainer.log(trainer, metrics)
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    return metrics
