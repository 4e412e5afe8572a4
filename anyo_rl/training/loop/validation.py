"""Validation NDCG@10 while training, for every trainer alike, in place of an evaluation loss."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn
from transformers import Trainer

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.evaluation.summary import FUSED
from anyo_rl.evidence.fusion import SAME_TOP, Engine, Fusion
from anyo_rl.metrics.ranking import mean_metrics, per_user_metrics
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.transformers import CACHE_TOKENS, TransformersSampler
from anyo_rl.search.answers import Answers, How, answer_together
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.loop.flops import validating
from anyo_rl.training.loop.weights import gathered

METRIC = "ndcg@10"
DEPTH = (
    10  # ranks beyond it are not told apart: the metrics do not, and a flat teacher is searched without end for them
)
CUT = "cut_share"


@dataclass(frozen=True)
class Validation:
    """What is measured on validation users.

    Attributes:
        rows: validation examples (`anyo_rl.reasoning.rows.make_rows`).
        catalog: the catalog.
        tokens: the teacher's tokenizer and marker.
        how: how the teacher answers; the draws of a mixture are the same each time, so that measurements compare.
        node_budget: tree nodes read for one context, at most; what is unknown then counts against the target.
        cache_tokens: of sampling; see `TransformersSampler`.
        fusion: evidence that ranks are taken together with; `None` for those of the teacher by itself.
    """

    rows: Sequence[Row]
    catalog: Catalog
    tokens: Tokens
    how: How
    node_budget: int | None = None
    cache_tokens: int = CACHE_TOKENS
    fusion: Fusion | None = None

    @property
    def metric(self) -> str:
        """What a teacher is chosen by: fused ranks have another name, so that nobody compares them with others."""
        return METRIC if self.fusion is None else f"{FUSED}{METRIC}"

    def answers(self, model: nn.Module) -> Answers:
        """Answers to the validation users, with ranks of `DEPTH` + 1 beyond it.

        The processes call this together: see `answer_together`.
        """
        engine = LikelihoodRanker(self.catalog, model, cap=DEPTH, node_budget=self.node_budget)
        ranker: Engine = engine if self.fusion is None else self.fusion.of(engine)
        sampler = TransformersSampler(model, self.tokens, self.cache_tokens)
        return answer_together(self.rows, ranker, sampler, self.tokens, replace(self.how, keep_paths=False))


def run_validation(trainer: Trainer, validation: Validation, prefix: str = "eval") -> dict[str, float]:
    """Measures, logs and hands the metrics to the trainer's callbacks, as `Trainer.evaluate` does with a loss.

    Best checkpoint, early stopping and reports work by the names
    `eval_ndcg@10` and `eval_hr@10`; `eval_cut_share` is the share of users whose rank the node budget cut short.
    With evidence they are `eval_fused_ndcg@10` and so on, beside `eval_beyond_evidence` (NDCG@10 less that of the
    evidence alone), and the shares of answers whose first item (`eval_same_top1`) or first ten in order
    (`eval_same_top10`) are the evidence's own, each with its change since the first validation.
    """
    accelerator = trainer.accelerator
    with gathered(trainer.model_wrapped, accelerator) as model, validating(trainer):
        answers = validation.answers(model)
    means = _means(answers.ranks_U)
    fused = "" if validation.fusion is None else FUSED
    metrics = {f"{prefix}_{fused}{name}": value for name, value in means.items()}
    assert answers.complete_U is not None, "an engine searches"
    metrics[f"{prefix}_{CUT}"] = float(1 - answers.complete_U.mean())
    if answers.as_evidence_U_2 is not None and answers.evidence_ranks_U is not None:
        beyond = means[METRIC] - _means(answers.evidence_ranks_U)[METRIC]
        metrics[f"{prefix}_beyond_evidence"] = beyond
        for k, share in zip(SAME_TOP, answers.as_evidence_U_2.mean(axis=0).tolist(), strict=True):
            name = f"{prefix}_same_top{k}"
            before = next((row[name] for row in trainer.state.log_history if name in row), share)
            metrics |= {name: share, f"{name}_change": share - before}
    # Not the trainer's own `log`: TRL's would put the pending training metrics into this row, and forget them.
    Trainer.log(trainer, metrics)
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    return metrics


def _means(ranks_U: np.ndarray) -> dict[str, float]:
    """Mean NDCG and hit rate; of ranks that end at `DEPTH` there is no MRR."""
    means = mean_metrics(per_user_metrics(ranks_U, cutoffs=(DEPTH,)))
    del means["mrr"]
    return means
