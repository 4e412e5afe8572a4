"""The fast search against the slow, obvious one: the whole matrix of float64 distances, and a sort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyo_rl.ranking.grounding import ItemSpace
from anyo_rl.ranking.tiles import ItemTiles


def slow_scores(rows_B_D, items_N_D, weight=None, gamma=0.0):
    """D or D̃, float64; `weight` is W, (N,) or raw (B, N)."""
    distance = np.sqrt(((rows_B_D.double()[:, None] - items_N_D.double()[None]) ** 2).sum(-1).numpy())
    if weight is None or not gamma:
        return distance
    weight = weight.double().numpy()
    if weight.ndim == 2:
        low = weight.min(1, keepdims=True)
        weight = (weight - low) / np.maximum(weight.max(1, keepdims=True) - low, 1e-12)
    low = distance.min(1, keepdims=True)
    spread = distance.max(1, keepdims=True) - low
    return (distance - low) / np.where(spread > 1e-12 * low, spread, 1) * (1 + weight) ** -gamma


def make_vectors(kind, n, dim, generator):
    if kind == "grid":  # many equal vectors, many equal distances
        return torch.randint(-1, 2, (n, dim), generator=generator).float()
    if kind == "near":  # a common component far above the differences, which reach down to one float
        scale = 10.0 ** torch.randint(-7, 0, (n, 1), generator=generator)
        return torch.randn(1, dim, generator=generator) * 3 + scale * torch.randn(n, dim, generator=generator)
    if kind == "equal":
        return torch.randn(1, dim, generator=generator).expand(n, dim).clone()
    return torch.randn(n, dim, generator=generator) * torch.rand(n, 1, generator=generator) * 10


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    n_items=st.sampled_from([1, 2, 127, 128, 129, 300, 513]),
    dim=st.sampled_from([1, 2, 5, 40]),
    kind=st.sampled_from(["grid", "near", "equal", "normal"]),
    reweigh=st.sampled_from(["no", "counts", "shares", "rows"]),
    gamma=st.sampled_from([0.3, 2.0, 20.0]),
    k=st.sampled_from([0, 1, 7, 200]),
    chunk_size=st.sampled_from([1, 256, 4096]),
    mode=st.sampled_from(["all", "removed", "candidates"]),
)
def test_agrees_with_the_slow_form(seed, n_items, dim, kind, reweigh, gamma, k, chunk_size, mode):
    generator = torch.Generator().manual_seed(seed)
    random = np.random.default_rng(seed)
    n_rows = 5
    items = make_vectors(kind, n_items, dim, generator)
    rows = make_vectors(kind, n_rows, dim, generator)
    rows[0] = items[random.integers(n_items)]  # what was written is an item
    rows[1] = items[random.integers(n_items)] + 1e-6
    weight, weights = None, None
    if reweigh == "counts":
        weight = torch.from_numpy(random.geometric(0.5, n_items) / 20).clamp_max(1)
    elif reweigh == "shares":
        weight = torch.rand(n_items, generator=generator, dtype=torch.float64)
    elif reweigh == "rows":
        raw = torch.randn(n_rows, n_items, generator=generator)
        weights = lambda items_n: raw[:, items_n]  # noqa: E731
    space = ItemSpace(
        items, weight_N=weight, gamma=0.0 if reweigh == "no" else gamma, chunk_size=chunk_size, row_size=3
    )
    targets = torch.from_numpy(random.integers(0, n_items, n_rows))
    competes = np.ones((n_rows, n_items), dtype=bool)
    if mode != "all":
        competes = random.random((n_rows, n_items)) < 0.5
    if mode == "removed":
        competes[np.arange(n_rows), targets] = True
        removed = tuple(torch.from_numpy(part) for part in np.nonzero(~competes))
        found = space.search(rows, targets, k, removed=removed, weights=weights)
    elif mode == "candidates":
        pairs = tuple(torch.from_numpy(part) for part in np.nonzero(competes))
        found = space.search_pairs(rows, targets, k, pairs, weights=weights)
    else:
        found = space.search(rows, targets, k, weights=weights)

    scores = slow_scores(rows, items, raw if reweigh == "rows" else weight, 0.0 if reweigh == "no" else gamma)
    for row, target in enumerate(targets.tolist()):
        # A score is a difference of distances where it reweighs: float64 is as fine as the distances.
        noise = 1e-13 * (rows[row].double() - items.double()).abs().sum(-1).max().item()
        gap = scores[row] - scores[row, target]
        others = competes[row] & (np.arange(n_items) != target)
        slack = 1e-11 * scores[row, target] + (0 if reweigh == "no" else noise / max(np.ptp(gap), 1e-9) + 1e-9)
        if reweigh == "no":
            assert found.rivals_B[row] == np.sum(others & (gap <= 1e-12 * scores[row, target]))
        else:
            assert np.sum(others & (gap <= -slack)) <= found.rivals_B[row] <= np.sum(others & (gap <= slack))
        best = np.flatnonzero(competes[row])
        best = best[np.argsort(scores[row, best], kind="stable")][:k]
        listed = found.items_B_K[row][found.items_B_K[row] >= 0].tolist()
        assert len(set(listed)) == len(listed) == len(best)
        assert set(listed) <= set(np.flatnonzero(competes[row]))
        tight = 1e-11 if reweigh == "no" else 1e-6
        np.testing.assert_allclose(found.scores_B_K[row, : len(best)], scores[row, best], rtol=tight, atol=tight)
        np.testing.assert_allclose(found.scores_B_K[row, : len(best)], scores[row, listed], rtol=tight, atol=tight)


@pytest.mark.parametrize("dim", [3, 64, 1500])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_squares_stay_within_the_tolerance(dim, offset):
    generator = torch.Generator().manual_seed(dim)
    items = torch.randn(700, dim, generator=generator) + offset
    rows = torch.randn(50, dim, generator=generator) + offset
    tiles = ItemTiles(items, order_N=None, chunk_size=256, row_size=32)
    exact = ((rows.double()[:, None] - items.double()[None]) ** 2).sum(-1)
    seen = torch.zeros(50, 700, dtype=torch.int64)
    for tile in tiles.tiles(rows, None):
        n = tile.places.stop - tile.places.start
        off = (tile.square_R_C[:, :n].double() - exact[tile.rows, tile.places]).abs()
        share = off / tile.tolerance_R_b.repeat_interleave(128, dim=1)[:, :n]
        assert share.max() < 0.5  # the bound has room
        seen[tile.rows, tile.places] += 1
    assert (seen == 1).all()


def test_few_pairs_need_their_exact_distance(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    items, rows = torch.randn(5000, 96, generator=generator), torch.randn(40, 96, generator=generator)
    space = ItemSpace(items, chunk_size=512)
    pairs = []
    exact = space.items.distances
    monkeypatch.setattr(space.items, "distances", lambda x, r, i: pairs.append(len(r)) or exact(x, r, i))
    space.search(rows, torch.arange(40), 10)
    assert 40 <= sum(pairs) < 0.01 * 40 * 5000


def test_settings_for_speed_do_not_reach_the_product():
    generator = torch.Generator().manual_seed(0)
    items, rows = torch.randn(300, 64, generator=generator), torch.randn(8, 64, generator=generator)
    targets = torch.arange(8)
    expected = ItemSpace(items).search(rows, targets, 5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = ItemSpace(items).search(rows, targets, 5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.rivals_B, expected.rivals_B)
    assert torch.equal(found.items_B_K, expected.items_B_K)


def test_memory_stays_bounded_where_everything_ties(monkeypatch):
    monkeypatch.setattr("anyo_rl.ranking.running_top.SETTLE", 1000)
    found = ItemSpace(torch.ones(2000, 4), chunk_size=128).search(torch.zeros(3, 4), torch.tensor([0, 999, 1999]), 3)
    assert found.rivals_B.tolist() == [1999] * 3
    assert found.items_B_K.tolist() == [[0, 1, 2]] * 3
    assert (found.scores_B_K == 2.0).all()


def test_vectors_too_long_for_float32():
    with pytest.raises(ValueError, match="vector of an item"):
        ItemSpace(torch.tensor([[1e30], [-1e30]]))
    with pytest.raises(ValueError, match="vector of a row"):
        ItemSpace(torch.ones(2, 1)).search(torch.tensor([[1e30]]), torch.tensor([0]), 1)


def test_the_same_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    generator = torch.Generator().manual_seed(0)
    items, rows = torch.randn(3000, 64, generator=generator), torch.randn(30, 64, generator=generator)
    items[1500:1600] = items[:100]
    weight = torch.rand(3000, generator=generator)
    for weight_N in (None, weight):
        expected = ItemSpace(items, weight_N=weight_N, gamma=1.0).search(rows, torch.arange(30), 7)
        found = ItemSpace(items.cuda(), weight_N=weight_N, gamma=1.0).search(rows.cuda(), torch.arange(30).cuda(), 7)
        assert torch.equal(found.rivals_B.cpu(), expected.rivals_B)
        assert torch.equal(found.items_B_K.cpu(), expected.items_B_K)
