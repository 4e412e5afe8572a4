"""GRPO with the `match` ranker: items are sampled under the catalog's constraint, and trained under the same mask."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anyo_rl.data.completion import parse
from anyo_rl.encoders.hidden_states import MINILM, minilm_encoder, teacher_encoder
from anyo_rl.evidence.reweighing import ReweighedRanker
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.match import MatchRanker
from anyo_rl.ranking.protocol import Ranking
from anyo_rl.ranking.written import written_ranker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.training.reasoner import ReasonerTrainer
from reward.valid_item import ValidItemReward
from tests.training.helpers import G, reasoner

MOST = 5  # tokens of a reasoning, the marker included
ROWS = [
    Row(example_id=f"u{u}:1", user_id=f"u{u}", prompt=prompt, history=["i0"], target_id="i4")
    for u, prompt in enumerate(["Alien\n", "mug\n", "Toys and toys\n", "x\n"])
]


def gain_reward(gain, **columns) -> list[float | None]:
    return gain


@pytest.fixture
def make(small_teacher, small_catalog, small_tokens, tmp_path):
    def trainer(reward=gain_reward, *, ranker=None, write_item=True, item_loss="none", **settings) -> ReasonerTrainer:
        settings = {"max_steps": 1, "learning_rate": 0.0, "temperature": 1.0, "max_completion_length": MOST} | settings
        return reasoner(
            *(small_teacher, small_catalog, small_tokens, tmp_path),
            rows=ROWS,
            reward=reward,
            settings=settings,
            write_item=write_item,
            written_ranker=ranker or MatchRanker(small_catalog),
            item_loss=item_loss,
        )

    return trainer


def with_log_probs(trainer: ReasonerTrainer) -> None:
    """Lets the trainer's sampler say what it drew with."""
    plain = trainer._sampler

    def sampler(model):
        made = plain(model)
        made.with_log_probs = True
        return made

    trainer._sampler = sampler


def test_every_completion_ends_with_an_item(make, small_catalog):
    calls = []

    def recording(completions, **columns):
        calls.append({"completions": completions, **columns})
        return [float(i % 2) for i in range(len(completions))]

    trainer = make(recording, max_steps=3, learning_rate=1e-3)
    trainer.train()
    assert len(calls) == 3
    assert calls[0]["completions"] != calls[1]["completions"]
    for call in calls:
        for i, text in enumerate(call["completions"]):
            written = small_catalog.find(parse(text).item)
            assert written is not None, text
            assert call["item_id"][i] == written
            assert call["rank"][i] == (1 if written == call["target_id"][i] else len(small_catalog))
            assert call["log_prob"][i] is None
            ids = call["completion_ids"][i]
            assert ids[-1] == trainer.tokens.eos_id
            assert trainer.tokens.marker_id in ids[:MOST]
    logged = trainer.state.log_history[0]
    assert logged["parsed_share"] == 1
    assert logged["completions/clipped_ratio"] == 0


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
def test_the_ratio_to_sampling_is_1_at_the_first_step(make, temperature, gradient_accumulation_steps):
    trainer = make(temperature=temperature, gradient_accumulation_steps=gradient_accumulation_steps)
    with_log_probs(trainer)
    compute_loss, seen = trainer._compute_loss, []

    def checked(model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        n_new = inputs["completion_ids"].shape[1]
        log_p, entropies, _ = trainer._get_per_token_logps_and_entropies(
            model, ids, mask, n_new, batch_size=3, compute_entropy=True
        )
        there = inputs["completion_mask"].bool()
        ratio = (log_p - inputs["sampling_per_token_logps"]).exp()[there]
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)
        assert torch.isfinite(log_p).all()
        assert (entropies[there] >= -1e-6).all()
        seen.append(log_p[there].min().item())
        return compute_loss(model, inputs)

    trainer._compute_loss = checked
    trainer.train()
    assert len(seen) == gradient_accumulation_steps
    assert min(seen) < -0.5  # they are choices


def test_log_probabilities_are_those_of_reasoning_and_item(make, small_catalog, small_tokens, small_teacher):
    trainer = make()
    with_log_probs(trainer)
    contexts = [small_tokens.context_ids(row.prompt) for row in ROWS]
    samples = trainer._sampler(small_teacher).sample(contexts, Sampling(n=3, max_new_tokens=MOST, seed=1))
    small_teacher.eval()
    for context, of_prompt in zip(contexts, samples, strict=True):
        for sample in of_prompt:
            end = sample.token_ids.index(small_tokens.marker_id) + 1
            marked = [*context, *sample.token_ids[:end]]
            (table,) = DistributionRanker(small_catalog, small_teacher).log_probs([marked])
            item = list(small_catalog.paths).index(tuple(sample.token_ids[end:]))
            assert sum(sample.log_probs[end:]) == pytest.approx(float(table[item]), abs=1e-4)
            with torch.no_grad():
                logits = small_teacher(torch.tensor([marked])).logits[0, len(context) - 1 : -1]
            logits[:, small_tokens.eos_id] = -torch.inf  # the sequence cannot end before the marker
            expected = logits.log_softmax(-1).gather(1, torch.tensor(marked[len(context) :])[:, None])[:, 0]
            if end == MOST:
                expected[-1] = 0.0  # the marker was forced
            np.testing.assert_allclose(sample.log_probs[:end], expected, atol=1e-4)


@pytest.mark.slow
def test_the_target_becomes_more_likely(make, small_catalog, small_tokens, small_teacher):
    contexts = [[*small_tokens.context_ids(row.prompt), small_tokens.marker_id] for row in ROWS]

    def likely() -> float:
        return float(DistributionRanker(small_catalog, small_teacher).log_probs(contexts)[:, 4].exp().mean())

    before = likely()
    make(max_steps=40, learning_rate=3e-3, lr_scheduler_type="constant").train()
    assert likely() > 2 * before


@pytest.mark.parametrize("item_encoder", ["teacher", "minilm"])
def test_a_near_miss_ranks_by_its_distance(make, small_catalog, small_teacher, small_tokens, item_encoder, tmp_path):
    if item_encoder == "minilm":
        pytest.importorskip(MINILM)
    ranker = written_ranker(
        "embedding", small_catalog, item_encoder, lambda: (small_teacher, small_tokens.tokenizer), tmp_path / "vectors"
    )
    encoder = minilm_encoder() if item_encoder == "minilm" else teacher_encoder(small_teacher, small_tokens.tokenizer)
    vectors = encoder(list(small_catalog.titles)).double()
    calls = []

    def recording(rank, item_id, target_id, **columns):
        calls.append((rank, item_id, target_id))
        return [0.0] * len(rank)

    make(recording, ranker=ranker, max_steps=2).train()
    assert len(calls) == 2
    for ranks, written, targets in calls:
        for rank, item, target in zip(ranks, written, targets, strict=True):
            distances = (vectors - vectors[small_catalog.index[item]]).norm(dim=1)
            assert rank == int((distances <= distances[small_catalog.index[target]]).sum())
    with pytest.raises(ValueError, match="'what' is no item of the catalog: this ranker is for constrained"):
        ranker.rank(["-> what"], ["i0"])


def test_a_near_miss_is_reweighed_by_what_belongs_to_its_example(
    make, small_catalog, small_teacher, small_tokens, tmp_path
):
    ranker = written_ranker(
        "embedding", small_catalog, "teacher", lambda: (small_teacher, small_tokens.tokenizer), tmp_path / "vectors"
    )
    vectors = teacher_encoder(small_teacher, small_tokens.tokenizer)(list(small_catalog.titles)).double()
    w_of = {row.example_id: np.random.default_rng(u).permutation(len(small_catalog)) for u, row in enumerate(ROWS)}
    weights = SimpleNamespace(of=lambda ids: np.stack([w_of[one] for one in ids]).astype(np.float32))
    moved = []

    def recording(rank, item_id, target_id, example_id, **columns):
        for found, item, target, example in zip(rank, item_id, target_id, example_id, strict=True):
            distances = (vectors - vectors[small_catalog.index[item]]).norm(dim=1)
            weighed = distances * (1 + torch.from_numpy(w_of[example] / 9)) ** -4.0
            place = small_catalog.index[target]
            assert found == int((weighed <= weighed[place]).sum())
            moved.append(found != int((distances <= distances[place]).sum()))
        return [0.0] * len(rank)

    make(recording, ranker=ReweighedRanker(ranker.with_gamma(4.0), weights)).train()
    assert any(moved)


def test_what_does_not_fit_is_refused(make):
    with pytest.raises(ValueError, match="an item loss trains an answer that is read off; set item_loss to none"):
        make(item_loss="best")
    with pytest.raises(ValueError, match=r"by temperature and top_p alone; unset use_vllm, top_k"):
        make(top_k=5)
    with pytest.raises(ValueError, match="the teacher stops at the marker; call stop_at_marker before"):
        make(write_item=False)


def test_an_item_that_is_left_out_of_the_ranking_is_none(make, small_catalog):
    class Leaves(MatchRanker):
        """Finds every item that was written in the history."""

        def rank(self, contexts_B, target_ids_B, **kwargs):
            ranking = super().rank(contexts_B, target_ids_B, **kwargs)
            return Ranking(ranking.ranks_B, [[] for _ in contexts_B], [[] for _ in contexts_B])

    seen = []

    def keep(item_id, history, **columns):
        seen.extend(item_id)
        return ValidItemReward()(item_id, history)

    trainer = make(keep, ranker=Leaves(small_catalog))
    trainer.train()
    assert seen == [None] * 2 * G
    assert trainer.state.log_history[0]["ungrounded_share"] == 1.0
