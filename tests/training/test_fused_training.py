"""Training on ranks by teacher and evidence together: what rewards and logs see, and what beyond_evidence comes to."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anyo_rl.evidence.candidates import NONE, places, ranks_at
from anyo_rl.evidence.fusion import FusedRanker, Fusion, fuse
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.match import MatchRanker
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.arguments import GrpoArguments
from anyo_rl.stages.reinforce import checked_rewards
from anyo_rl.training.objective import Objective
from tests.training.helpers import ROWS, grpo_config, reasoner, trained_batches

ALPHA = 0.6
CANDIDATES = {"u0:1": [2, 1, 5, 3], "u1:1": [9, 8, NONE, NONE], "u2:1": [5, 0, 4, 6], "u3:1": [0, 1, 2, 3]}
SCORES = {"u0:1": [0.4, 0.3, 0.2, 0.1], "u1:1": [0.7, 0.3, 0, 0], "u2:1": [0.5, 0.3, 0.1, 0.1], "u3:1": [0.25] * 4}
EVIDENCE_RANKS = {"u0:1": 2, "u1:1": 1, "u2:1": 3, "u3:1": 7}  # the last target, i7, is no candidate


class Known:
    """Evidence that is written down above."""

    def __init__(self, catalog):
        self.maker = SimpleNamespace(index=catalog.index)

    def candidates(self, ids):
        return np.array([CANDIDATES[one] for one in ids], dtype=np.int32).reshape(-1, 4)

    def log_scores(self, ids):
        with np.errstate(divide="ignore"):
            return np.log(np.array([SCORES[one] for one in ids])).reshape(-1, 4)

    def target_ranks(self, ids):
        return np.array([EVIDENCE_RANKS[one] for one in ids], dtype=np.int64)


@pytest.fixture
def fusion(small_catalog):
    return Fusion(Known(small_catalog), ALPHA)


def test_rewards_see_fused_ranks_and_the_teachers_own_probability(make_reasoner, fusion, small_catalog, small_tokens):
    seen = []

    def by_fused_rank(prompts, completion_ids, example_id, target_id, rank, log_prob, **_):
        columns = zip(prompts, completion_ids, example_id, target_id, rank, log_prob, strict=True)
        contexts = [[*small_tokens.context_ids(prompt), *ids] for prompt, ids, *_ in columns]
        table_B_N = DistributionRanker(small_catalog, trainer.model).log_probs(contexts).numpy()
        for row, (example, target) in enumerate(zip(example_id, target_id, strict=True)):
            if small_tokens.marker_id not in completion_ids[row]:
                continue
            items_1_K = np.array([CANDIDATES[example]])
            log_p_1_K = fuse(
                table_B_N[None, row : row + 1, items_1_K[0]], fusion.evidence.log_scores([example]), ALPHA
            )
            place = places(items_1_K, np.array([small_catalog.index[target]]))
            expected = int(ranks_at(log_p_1_K, place)[0]) if place[0] != NONE else EVIDENCE_RANKS[example]
            assert rank[row] == expected
            assert log_prob[row] == pytest.approx(table_B_N[row, small_catalog.index[target]], abs=1e-4)
            seen.append((example, expected))
        return [1.0 / (rank or 10) for rank in rank]

    trainer = make_reasoner(reward=by_fused_rank, fusion=fusion)
    trainer.train()
    assert len({example for example, _ in seen}) >= 3
    assert any(rank != EVIDENCE_RANKS[example] for example, rank in seen)
    logged = [row for row in trainer.state.log_history if "evidence/beyond" in row]
    assert len(logged) == 2
    assert all(0 <= row["evidence/same_top10"] <= row["evidence/same_top1"] <= 1 for row in logged)


@pytest.mark.parametrize("scale", ["group", "none", "batch"])
def test_gain_less_the_evidences_own_has_the_same_advantages(
    ending_teacher, small_catalog, small_tokens, tmp_path, fusion, scale
):
    """Identical; but for the scale where that is the spread of the batch, in which prompts differ too."""

    def fused_gain(gain, **_):
        return [one or 0.0 for one in gain]

    def beyond(gain, example_id, **_):
        own = ndcg(fusion.evidence.target_ranks(example_id)).tolist()
        return [(one or 0.0) - of_evidence for one, of_evidence in zip(gain, own, strict=True)]

    found = []
    for reward in (fused_gain, beyond):
        args = grpo_config(tmp_path, max_steps=1, scale_rewards=scale)
        parts = copy.deepcopy(ending_teacher), small_catalog, small_tokens, args
        found.append(trained_batches(reasoner(*parts, reward=reward, fusion=fusion))[0])
    plain, less = (batch["advantages"] for batch in found)
    assert torch.equal(found[0]["completion_ids"], found[1]["completion_ids"])
    assert plain.abs().max() > 1e-3
    if scale == "batch":
        plain, less = plain / plain.norm(), less / less.norm()
    torch.testing.assert_close(plain, less, atol=1e-5, rtol=1e-4)


def test_as_a_reward_it_is_refused_by_name(tmp_path):
    args = GrpoArguments(reward_funcs=["ndcg", "beyond_evidence"])
    with pytest.raises(UsageError, match="beyond_evidence: it is the fused gain less what the evidence gains"):
        checked_rewards(lambda *_: [], args, grpo_config(tmp_path))


def test_validation_is_of_fused_ranks_and_says_so(make_reasoner, fusion, small_catalog, small_tokens):
    trainer = make_reasoner(fusion=fusion)
    plain = trainer.evaluate()
    assert "eval_fused_ndcg@10" not in plain
    trainer.validation = type(trainer.validation)(
        ROWS, small_catalog, small_tokens, trainer.validation.how, fusion=fusion
    )
    assert trainer.validation.metric == "fused_ndcg@10"
    first = trainer.evaluate()
    assert "eval_ndcg@10" not in first
    answers = trainer.validation.answers(trainer.model)
    capped = np.minimum(answers.ranks_U, 11)
    assert first["eval_fused_ndcg@10"] == pytest.approx(ndcg(capped, 10).mean())
    own = np.mean([ndcg(rank) for rank in EVIDENCE_RANKS.values()])
    assert first["eval_beyond_evidence"] == pytest.approx(first["eval_fused_ndcg@10"] - own)
    assert first["eval_same_top1_change"] == 0
    # A teacher without a say answers as the evidence does.
    silent = Fusion(fusion.evidence, 1e-9)
    trainer.validation = type(trainer.validation)(
        ROWS, small_catalog, small_tokens, trainer.validation.how, fusion=silent
    )
    last = trainer.evaluate()
    assert last["eval_same_top1"] >= 3 / 4  # the last example's four candidates tie
    assert last["eval_beyond_evidence"] == pytest.approx(0)
    assert last["eval_same_top1_change"] == pytest.approx(last["eval_same_top1"] - first["eval_same_top1"])


def test_ranks_end_at_the_cap(ending_teacher, small_catalog, small_tokens, fusion):
    contexts = [[*small_tokens.context_ids(row.prompt), small_tokens.marker_id] for row in ROWS]
    asked = {"example_ids_B": [row.example_id for row in ROWS]}
    targets = [row.target_id for row in ROWS]
    whole = fusion.of(LikelihoodRanker(small_catalog, ending_teacher)).rank(contexts, targets, **asked)
    assert whole.evidence_ranks_B.tolist() == list(EVIDENCE_RANKS.values())
    assert whole.ranks_B[3] == 7
    capped = fusion.of(LikelihoodRanker(small_catalog, ending_teacher, cap=2)).rank(contexts, targets, **asked)
    assert capped.ranks_B.tolist() == np.minimum(whole.ranks_B, 3).tolist()
    np.testing.assert_allclose(whole.beyond_evidence_B, ndcg(whole.ranks_B) - ndcg(whole.evidence_ranks_B))
    alone = FusedRanker(LikelihoodRanker(small_catalog, ending_teacher), fusion.evidence, 0.0)
    assert alone.rank(contexts, targets, **asked).as_evidence_B_2.all()


def test_written_items_are_not_fused(fusion, small_catalog):
    with pytest.raises(UsageError, match="set ranker to likelihood"):
        Objective(written_ranker=MatchRanker(small_catalog), item_loss="none", fusion=fusion)
