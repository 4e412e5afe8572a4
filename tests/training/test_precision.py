"""The numbers that a reasoner trainer works with: their precision, and what is said when they are none."""

import pytest
import torch

from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.run.settings import UsageError
from tests.training.helpers import reasoner


@pytest.mark.parametrize("bf16", [True, False])
def test_ranks_are_read_in_the_precision_that_the_teacher_is_trained_in(
    small_teacher, small_catalog, small_tokens, tmp_path, monkeypatch, bf16
):
    seen = []
    search = LikelihoodRanker.search

    def spied(self, *args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return search(self, *args)

    monkeypatch.setattr(LikelihoodRanker, "search", spied)
    settings = {"bf16": bf16, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = reasoner(small_teacher, small_catalog, small_tokens, tmp_path, settings=settings)
    trainer.train()
    assert len(seen) >= 2  # in training and in validation
    assert set(seen) == {bf16}


@pytest.mark.parametrize("ranked", [True, False])
def test_a_training_that_diverges_is_told_in_words(small_teacher, small_catalog, small_tokens, tmp_path, ranked):
    """By the engine, or by the next step's sampling."""
    settings = {"learning_rate": 1e30, "max_steps": 3, "eval_strategy": "steps" if ranked else "no", "eval_steps": 1}
    rewards = iter(range(1000))
    trainer = reasoner(
        *(small_teacher, small_catalog, small_tokens, tmp_path),
        settings=settings,
        reward=lambda completions, **_: [float(next(rewards)) for _ in completions],
    )
    with pytest.raises(UsageError, match="are no numbers: its weights have diverged"):
        trainer.train()
