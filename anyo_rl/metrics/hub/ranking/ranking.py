"""Ranking metrics as a module of `evaluate`: `evaluate.load("anyo_rl/metrics/hub/ranking")`, no network needed."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from anyo_rl.metrics.ranking import CUTOFFS, coverage, mean_metrics, per_user_metrics

_DESCRIPTION = """
Hit rate, NDCG and reciprocal rank of one target per user, averaged over users (NaN when there are none).
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: with the config "items" (the default), a list of item ids per user, best first; with the config
        "ranks", the target's 1-based rank per user.
    references: the target's item id per user (config "items" only). A target that is not in its list has gain 0, so
        there `mrr` and the cut-offs reach no further than the lists do.
    cutoffs: the k of `hr@k` and `ndcg@k`.
    n_items: size of the catalog; when given, the config "items" adds `coverage@k` for each cut-off.
Returns:
    a dict of `hr@k`, `ndcg@k`, `mrr` (and `coverage@k`), floats in [0, 1].
Examples:
    >>> metric = evaluate.load("anyo_rl/metrics/hub/ranking")
    >>> metric.compute(predictions=[["a", "b"], ["c", "d"]], references=["b", "x"], cutoffs=[1, 2])["hr@2"]
    0.5
"""

_CITATION = """
@article{jarvelin2002cumulated,
  title={Cumulated gain-based evaluation of IR techniques},
  author={J{\\"a}rvelin, Kalervo and Kek{\\"a}l{\\"a}inen, Jaana},
  journal={ACM Transactions on Information Systems},
  year={2002}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class Ranking(evaluate.Metric):
    """`hr@k`, `ndcg@k` and `mrr` from recommended lists or from ranks; the library's own functions do the work."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", "items", "ranks"):
            raise ValueError(f"found config '{self.config_name}', expected 'items' (the default) or 'ranks'")
        if self.config_name == "ranks":
            features = datasets.Features({"predictions": datasets.Value("int64")})
        else:
            features = datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("string")), "references": datasets.Value("string")}
            )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_KWARGS_DESCRIPTION, features=features
        )

    def _compute(
        self,
        predictions: Sequence[Any],
        references: Sequence[str] | None = None,
        cutoffs: Sequence[int] = CUTOFFS,
        n_items: int | None = None,
    ) -> dict[str, float]:
        if references is None:
            return mean_metrics(per_user_metrics(predictions, cutoffs))
        ranks = [
            top.index(target) + 1 if target in top else float("inf")
            for top, target in zip(predictions, references, strict=True)
        ]
        result = mean_metrics(per_user_metrics(ranks, cutoffs))
        if n_items is not None:
            result.update({f"coverage@{k}": coverage([top[:k] for top in predictions], n_items) for k in cutoffs})
        return result
