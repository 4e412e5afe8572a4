"""The fast search against the slow, obvious one: the whole matrix of float64 distances, and a sort."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from anyo_rl.ranking.embedding import item_space
from anyo_rl.ranking.embedding.grounding import Search
from anyo_rl.ranking.embedding.item_space import ItemSpace, where_at_most


def slow_distances(rows_B_D, items_N_D):
    return np.sqrt(((rows_B_D.double()[:, None] - items_N_D.double()[None]) ** 2).sum(-1).numpy())


def slow_scores(distance_B_N, weight_B_N, gamma):
    """D̃, and the spread of D of each row, float64; D itself where γ is 0."""
    if not gamma:
        return distance_B_N, np.ones(len(distance_B_N))
    weight_low = weight_B_N.min(1, keepdims=True)
    share = (weight_B_N - weight_low) / np.maximum(weight_B_N.max(1, keepdims=True) - weight_low, 1e-12)
    low, high = distance_B_N.min(1, keepdims=True), distance_B_N.max(1, keepdims=True)
    spread = np.where(high - low > 1e-12 * high, high - low, 1)
    return (distance_B_N - low) / spread * (1 + share) ** -gamma, spread[:, 0]


def make_vectors(kind, n, dim, generator):
    if kind == "grid":  # many equal vectors, many equal distances
        return torch.randint(-1, 2, (n, dim), generator=generator).float()
    if kind == "near":  # a common component far above the differences, which reach down to one float
        scale = 10.0 ** torch.randint(-7, 0, (n, 1), generator=generator)
        return torch.randn(1, dim, generator=generator) * 3 + scale * torch.randn(n, dim, generator=generator)
    if kind == "equal":
        return torch.randn(1, dim, generator=generator).expand(n, dim).clone()
    if kind == "copies":  # each vector several times
        return torch.randn(max(1, n // 3), dim, generator=generator).repeat(5, 1)[:n]
    if kind == "sphere":  # as encoders give them, on a common component
        return torch.nn.functional.normalize(torch.randn(n, dim, generator=generator) + 1, dim=1)
    return torch.randn(n, dim, generator=generator) * torch.rand(n, 1, generator=generator) * 10


def make_weights(reweigh, n_rows, n_items, generator):
    """Raw W as (B, N), float64, and as the search takes it."""
    if reweigh == "counts":  # a long tail
        raw = torch.randint(0, 7, (1, n_items), generator=generator) ** 4
    elif reweigh == "shares":
        raw = torch.rand(1, n_items, generator=generator, dtype=torch.float64)
    else:  # a CF model's scores, with a large common part
        raw = torch.randn(n_rows, n_items, generator=generator) + 50
    return raw.double().expand(n_rows, -1).numpy(), lambda items: raw[:, items]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    n_items=st.sampled_from([1, 2, 3, 127, 128, 300, 513]),
    dim=st.sampled_from([1, 2, 5, 40]),
    kind=st.sampled_from(["grid", "near", "equal", "copies", "sphere", "normal"]),
    reweigh=st.sampled_from(["no", "counts", "shares", "rows"]),
    gamma=st.sampled_from([0.3, 2.0, 20.0, 100.0]),
    k=st.sampled_from([0, 1, 7, 200]),
    chunk_size=st.sampled_from([1, 64, 100, 4096]),
    mode=st.sampled_from(["all", "removed", "candidates"]),
)
@example(0, 2, 5, "near", "counts", 0.3, 7, 4096, "all")
def test_agrees_with_the_slow_form(seed, n_items, dim, kind, reweigh, gamma, k, chunk_size, mode):
    generator = torch.Generator().manual_seed(seed)
    random = np.random.default_rng(seed)
    n_rows = 5
    items = make_vectors(kind, n_items, dim, generator)
    rows = make_vectors(kind, n_rows, dim, generator)
    rows[0] = items[random.integers(n_items)]  # what was written is an item
    rows[1] = items[random.integers(n_items)] + 1e-6
    raw, weights, gamma = None, None, 0.0 if reweigh == "no" else gamma
    if gamma:
        raw, weights = make_weights(reweigh, n_rows, n_items, generator)
    targets = torch.from_numpy(random.integers(0, n_items, n_rows))
    space = ItemSpace(items, chunk_size=chunk_size, row_size=3)
    search = Search(space, rows, targets, weights=weights, gamma=gamma)
    competes = np.ones((n_rows, n_items), dtype=bool) if mode == "all" else random.random((n_rows, n_items)) < 0.5
    pairs = tuple(torch.from_numpy(part) for part in np.nonzero(competes if mode == "candidates" else ~competes))
    found = search.among_candidates(k, pairs) if mode == "candidates" else search.among_all(k, pairs)

    distance = slow_distances(rows, items)
    scores, spread = slow_scores(distance, raw, gamma)
    for row, target in enumerate(targets.tolist()):
        # float64 is as fine as the distances, and a score is a difference of distances, over their spread.
        noise = 1e-14 * distance[row].max() / spread[row] + 1e-9 * scores[row]
        slack = noise + 2e-12 * (distance[row, target] / spread[row] + scores[row, target])
        gap = scores[row] - scores[row, target]
        if not gamma:
            assert found.n_near_B[row] == np.sum(competes[row] & (gap <= 1e-12 * scores[row, target]))
        surely, possibly = competes[row] & (gap < -slack), competes[row] & (gap <= slack)
        assert np.sum(surely) <= found.n_near_B[row] <= np.sum(possibly)
        best = np.flatnonzero(competes[row])
        best = best[np.argsort(scores[row, best], kind="stable")][:k]
        listed = found.items_B_K[row][found.items_B_K[row] < n_items].tolist()
        top_scores = found.scores_B_K[row, : len(best)].numpy()
        assert len(set(listed)) == len(listed) == len(best)
        assert set(listed) <= set(np.flatnonzero(competes[row]))
        assert (np.abs(top_scores - scores[row, best]) <= noise[best]).all()
        assert (np.abs(top_scores - scores[row, listed]) <= noise[listed]).all()
        equal = np.diff(top_scores) == 0
        assert (np.diff(listed)[equal] > 0).all()  # ties stand in item order


@pytest.mark.parametrize("seed", range(20))
def test_two_items_that_nearly_tie(seed):
    """D̃ is 0 for the nearer and (1 + W)^-γ for the other, however little they differ."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randn(1, 40, generator=generator).repeat(2, 1) * 3
    items[1, seed] += 1e-6 * torch.rand(1, generator=generator)[0] + 1e-6
    rows = torch.randn(3, 40, generator=generator)
    counts = torch.tensor([[0.0, 9.0]])
    search = Search(ItemSpace(items), rows, torch.tensor([0, 0, 1]), weights=lambda part: counts[:, part], gamma=0.3)
    found = search.among_all(2)
    distance = slow_distances(rows, items)
    assert (distance[:, 0] != distance[:, 1]).all()
    for row, nearer in enumerate(distance.argmin(1)):
        assert found.items_B_K[row].tolist() == [nearer, 1 - nearer]
        assert found.scores_B_K[row].tolist() == pytest.approx([0, 1 if nearer else 2**-0.3], abs=1e-12)


@pytest.mark.parametrize("dim", [3, 64, 1500])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_squares_stay_within_the_tolerance(dim, offset):
    generator = torch.Generator().manual_seed(dim)
    items = torch.randn(700, dim, generator=generator) + offset
    rows = torch.randn(50, dim, generator=generator) + offset
    space = ItemSpace(items, chunk_size=256, row_size=32)
    queries = space.queries(rows)
    exact = ((rows.double()[:, None] - items.double()[None]) ** 2).sum(-1) - queries.square_B[:, None]
    seen = torch.zeros(50, 700, dtype=torch.int64)
    for part in space.parts:
        for tile in space.tiles(queries, part):
            off = (tile.square_R_n.double() - exact[tile.rows, part]).abs()
            assert (off <= 0.5 * tile.tolerance_R_1).all()  # the bound has room
            seen[tile.rows, part] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("width", [1, 7, 63, 64, 65, 1000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_values_at_or_below_a_limit_are_found(width, share):
    generator = torch.Generator().manual_seed(width)
    values = torch.rand(9, width, generator=generator)
    values[:, 0] = torch.inf
    limits = share * torch.linspace(0.5, 1, 9)[:, None]
    assert torch.equal(torch.stack(where_at_most(values, limits), dim=1), (values <= limits).nonzero())


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest result of any operation has; views of the items do not count."""

    def __init__(self, items):
        super().__init__()
        self.largest, self.items = 0, items.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() != self.items:
                self.largest = max(self.largest, value.untyped_storage().nbytes() // value.element_size())
        return result


@pytest.mark.parametrize("reweigh", ["no", "counts", "rows"])
def test_no_matrix_of_rows_by_items_and_no_copy_of_the_items(reweigh):
    n_rows, n_items, dim = 96, 6000, 8
    generator = torch.Generator().manual_seed(0)
    items, rows = torch.randn(n_items, dim, generator=generator), torch.randn(n_rows, dim, generator=generator)
    user, item = torch.randn(n_rows, 3, generator=generator), torch.randn(n_items, 3, generator=generator)
    weights = {"no": None, "counts": lambda part: item[None, part, 0], "rows": lambda part: user @ item[part].T}
    with LargestTensor(items) as seen:
        space = ItemSpace(items, chunk_size=64, row_size=32)
        search = Search(space, rows, torch.arange(n_rows), weights=weights[reweigh], gamma=1.0)
        search.among_all(10, (torch.arange(n_rows), torch.arange(n_rows) + 100))
    assert n_items <= seen.largest <= 3 * n_items  # the weights are there, and nothing is larger


def test_few_pairs_need_their_exact_distance(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    items, rows = torch.randn(5000, 96, generator=generator), torch.randn(40, 96, generator=generator)
    space = ItemSpace(items)
    pairs = []
    exact = space.distances
    monkeypatch.setattr(space, "distances", lambda x, r, *items: pairs.append(len(r)) or exact(x, r, *items))
    Search(space, rows, torch.arange(40)).among_all(10)
    assert 40 <= sum(pairs) < 0.02 * 40 * 5000


def test_settings_for_speed_do_not_reach_the_product():
    generator = torch.Generator().manual_seed(0)
    items, rows = torch.randn(300, 64, generator=generator), torch.randn(8, 64, generator=generator)
    expected = Search(ItemSpace(items), rows, torch.arange(8)).among_all(5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = Search(ItemSpace(items), rows, torch.arange(8)).among_all(5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.n_near_B, expected.n_near_B)
    assert torch.equal(found.items_B_K, expected.items_B_K)


def test_everything_ties():
    search = Search(ItemSpace(torch.ones(2000, 4), chunk_size=128), torch.zeros(3, 4), torch.tensor([0, 999, 1999]))
    found = search.among_all(3)
    assert found.n_near_B.tolist() == [2000] * 3
    assert found.items_B_K.tolist() == [[0, 1, 2]] * 3
    assert (found.scores_B_K == 2.0).all()


def test_clear_errors():
    with pytest.raises(ValueError, match="vector of an item is too long"):
        ItemSpace(torch.tensor([[1e30], [-1e30]]))
    space = ItemSpace(torch.ones(2, 1))
    with pytest.raises(ValueError, match="vector of a row is too long"):
        Search(space, torch.tensor([[1e30]]), torch.tensor([0]))
    one = torch.zeros(1, 1), torch.tensor([0])
    with pytest.raises(ValueError, match="found gamma=-1, expected 0 to 100"):
        Search(space, *one, gamma=-1)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        Search(space, *one, gamma=1, weights=lambda part: torch.tensor([[1.0, torch.inf]]))
    with pytest.raises(ValueError, match=r"of 2 items and 1 rows have shape \(3, 2\)"):
        Search(space, *one, gamma=1, weights=lambda part: torch.ones(3, 2))


@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
def test_the_same_on_a_gpu(resident_bytes, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    monkeypatch.setattr(item_space, "RESIDENT_BYTES", resident_bytes)
    generator = torch.Generator().manual_seed(0)
    items, rows = torch.randn(3000, 64, generator=generator), torch.randn(30, 64, generator=generator)
    items[1500:1600] = items[:100]
    counts = torch.rand(1, 3000, generator=generator)
    for gamma in (0.0, 1.0):
        expected, found = (
            Search(
                ItemSpace(items, device=device, chunk_size=512),
                rows.to(device),
                torch.arange(30, device=device),
                weights=lambda part: counts[:, part],
                gamma=gamma,
            ).among_all(7)
            for device in ("cpu", "cuda")
        )
        assert torch.equal(found.n_near_B.cpu(), expected.n_near_B)
        assert torch.equal(found.items_B_K.cpu(), expected.items_B_K)
