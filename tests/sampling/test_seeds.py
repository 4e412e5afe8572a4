import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from anyo_rl.run.settings import UsageError
from anyo_rl.sampling import seeds
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.seeds import OwnDraws, draws_dtype, keys_of, request_seed, uniforms
from anyo_rl.sampling.transformers import TransformersSampler


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_picks_the_token_at_which_the_summed_probability_passes_it(dtype, monkeypatch):
    scores = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).log().expand(7, 4)
    numbers = np.array([[0.0], [0.499], [0.501], [0.799], [0.801], [0.999], [1 - 2**-32]])
    monkeypatch.setattr(seeds, "draws_dtype", lambda _: dtype)  # single precision: the last is 1 then
    drawn = OwnDraws(numbers, 2, scores.device)(torch.zeros(7, 2, dtype=torch.long), scores)
    assert drawn.argmax(1).tolist() == [0, 0, 2, 2, 3, 3, 3]
    assert torch.isinf(drawn).sum(1).tolist() == [3] * 7


def test_what_is_no_distribution_is_not_drawn_from():
    scores = torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])
    with pytest.raises(UsageError, match="its weights have diverged"):
        OwnDraws(np.zeros((2, 1)), 0, scores.device)(torch.zeros(2, 0, dtype=torch.long), scores)


def test_a_token_without_probability_is_never_drawn():
    scores = torch.full((200, 3), -torch.inf)
    scores[:, 1] = -5.0
    numbers = uniforms(0, 0, 200)[:, None]
    assert set(
        OwnDraws(numbers, 0, scores.device)(torch.zeros(200, 0, dtype=torch.long), scores).argmax(1).tolist()
    ) == {1}


def test_draws_are_made_in_what_a_device_has():
    assert draws_dtype(torch.device("mps")) == torch.float32
    assert draws_dtype(torch.device("cpu")) == draws_dtype(torch.device("cuda")) == torch.float64


def test_uniforms_are_a_row_of_their_own():
    assert uniforms(3, 1, 10).tolist() == uniforms(3, 1, 20)[:10].tolist()
    rows = [tuple(uniforms(seed, index, 4)) for seed in range(20) for index in range(20)]
    assert len(set(rows)) == 400
    many = np.concatenate([uniforms(request_seed(0, f"u{i}"), 0, 100) for i in range(200)])
    assert chisquare(np.histogram(many, bins=20, range=(0, 1))[0]).pvalue > 1e-3
    assert 0 <= many.min() < many.max() < 1


@pytest.fixture
def contexts(small_tokens):
    return [small_tokens.context_ids(text) for text in ("History:\nAlien\nNext:\n", "x", "Toys\nmug\n", "y", "Toys\n")]


def test_draws_do_not_depend_on_the_company(small_teacher, small_tokens, contexts):
    asked = {"temperature": 1.5, "max_new_tokens": 6, "seed": 4}
    keys = [f"u{i}" for i in range(5)]
    sampler = TransformersSampler(small_teacher, small_tokens, cache_tokens=80)
    whole = sampler.sample(contexts, Sampling(n=3, **asked), keys_B=keys)
    assert sampler.sample(contexts[::-1], Sampling(n=3, **asked), keys_B=keys[::-1]) == whole[::-1]
    alone = [sampler.sample([c], Sampling(n=3, **asked), keys_B=[k])[0] for c, k in zip(contexts, keys, strict=True)]
    assert alone == whole
    fewer = TransformersSampler(small_teacher, small_tokens, cache_tokens=140).sample(
        contexts, Sampling(n=2, **asked), keys_B=keys
    )
    assert fewer == [row[:2] for row in whole]
    assert sampler.sample(contexts, Sampling(n=3, **asked), keys_B=[f"v{i}" for i in range(5)]) != whole


def test_one_draw_follows_the_policy(small_teacher, small_tokens, contexts):
    """Many keys of one context, with a nucleus: a chi-square test against the model's own probabilities."""
    n = 4000
    sampler = TransformersSampler(small_teacher, small_tokens)
    rows = sampler.sample([contexts[0]] * n, Sampling(temperature=0.7, top_p=0.8, max_new_tokens=1))
    counts = np.bincount([row[0].token_ids[0] for row in rows], minlength=small_teacher.config.vocab_size)
    with torch.no_grad():
        p = torch.softmax(small_teacher(torch.tensor([contexts[0]])).logits[0, -1].double() / 0.7, -1).numpy()
    order = np.argsort(-p)
    kept = order[: 1 + int(np.searchsorted(np.cumsum(p[order]), 0.8))]
    assert counts.sum() == counts[kept].sum() == n
    expected = p[kept] / p[kept].sum() * n
    rare = expected < 5
    found = np.append(counts[kept][~rare], counts[kept][rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    assert chisquare(found, wanted).pvalue > 1e-3


def test_keys_are_one_for_each():
    assert len(set(keys_of([[1], [1], [2], [1]], None))) == 4
    assert keys_of([[1], [2]], ["a", "b"]) == ["a", "b"]
    for wrong in (["a", "a"], ["a"]):
        with pytest.raises(ValueError, match="different keys for 2 contexts"):
            keys_of([[1], [2]], wrong)
