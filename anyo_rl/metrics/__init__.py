"""Gains, ranking metrics and their intervals. Ranks are 1-based everywhere and ties count against the target."""

from anyo_rl.metrics.gains import hit, log_gain, mrr, ndcg
from anyo_rl.metrics.intervals import Interval, bootstrap_interval, paired_interval
from anyo_rl.metrics.ranking import coverage, mean_metrics, per_user_metrics, target_ranks, top_items

__all__ = [
    "Interval",
    "bootstrap_interval",
    "coverage",
    "hit",
    "log_gain",
    "mean_metrics",
    "mrr",
    "ndcg",
    "paired_interval",
    "per_user_metrics",
    "target_ranks",
    "top_items",
]
