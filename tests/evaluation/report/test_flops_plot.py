"""Validation over what it cost."""

from anyo_rl.evaluation.report import page as report


def test_validation_over_flops_counts_what_a_stage_goes_on_from():
    """GRPO begins where SFT ended; between two rows of the log FLOPs go on evenly; direct begins at 0."""
    metrics = [
        {"stage": "sft", "step": 10, "flops": 2e12},
        {"stage": "sft", "step": 10, "eval_ndcg@10": 0.1},
        {"stage": "grpo", "step": 0, "eval_ndcg@10": 0.1},
        {"stage": "grpo", "step": 10, "flops": 4e12},
        {"stage": "grpo", "step": 5, "eval_ndcg@10": 0.2},
        {"stage": "direct", "step": 10, "flops": 1e12},
        {"stage": "direct", "step": 10, "eval_ndcg@10": 0.3},
        {"stage": "star/round-1/paths", "step": 0, "flops": 3e12},
        {"stage": "star/round-1", "step": 10, "flops": 1e12},
        {"stage": "star/round-1", "step": 10, "eval_ndcg@10": 0.2},
        {"stage": "star/round-2", "step": 10, "flops": 1e12},
        {"stage": "star/round-2", "step": 10, "eval_ndcg@10": 0.3},
        {"stage": "dpo", "step": 10, "eval_ndcg@10": 0.3},
        {"stage": "ppo", "step": 10, "eval_fused_ndcg@10": 0.4},
        {"stage": "ppo", "step": 10, "flops": 2e12},
    ]
    assert report.over_flops(metrics, "sft") == ([2.0], [0.1])
    assert report.over_flops(metrics, "grpo") == ([2.0, 4.0], [0.1, 0.2])
    assert report.over_flops(metrics, "direct") == ([1.0], [0.3])
    assert report.over_flops(metrics, "star/round-1") == ([6.0], [0.2])  # 2 of SFT, 3 of sampling, its own
    assert report.over_flops(metrics, "star/round-2") == ([7.0], [0.3])
    assert report.over_flops(metrics, "dpo") is None
    assert report.over_flops(metrics, "ppo") is None
    assert report.over_flops(metrics, "ppo", "fused_ndcg@10") == ([4.0], [0.4])
    plot = report.training_plots(metrics)[-1]
    assert plot.title == "Validation NDCG@10 over FLOPs"
    assert "ppo with evidence" in plot.svg
