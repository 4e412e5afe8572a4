import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyo_rl.ranking.embedding.ranker import EmbeddingRanker

IDS = ["a", "b", "c", "d"]
VECTORS = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 0.0]])  # from the origin: 0, 5, 10, 0


def at(**points):
    """An encoder that knows its texts by name."""
    return lambda texts: torch.tensor([points[text] for text in texts])


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4096])
def test_ranks_by_distance_and_ties_count_against_the_target(chunk_size):
    ranker = EmbeddingRanker(IDS, VECTORS, at(x=[0.0, 0.0]), chunk_size=chunk_size)
    ranking = ranker.rank(["wants a -> x"] * 4, IDS, top_k=3)
    assert ranking.ranks_B.tolist() == [2, 3, 4, 2]  # a and d share rank 2
    assert ranking.ranks_B.dtype == np.int64
    assert ranking.top_ids_B_K == [["a", "d", "b"]] * 4
    assert ranking.top_scores_B_K[0] == [0.0, 0.0, -5.0]


def test_k_beyond_the_catalog_gives_the_whole_catalog():
    ranking = EmbeddingRanker(IDS, VECTORS, at(x=[0.0, 0.0])).rank(["-> x"], ["a"], top_k=99)
    assert ranking.top_ids_B_K == [["a", "d", "b", "c"]]


def test_popularity_moves_items_by_hand_computed_amounts():
    # Distances 1, 2, 5 → D̂ = 0, 1/4, 1. Counts 0, 0, 8 → W = 0, 0, 1. With γ = 3: D̃ = 0, 1/4, 1/8.
    vectors = np.array([[1.0], [2.0], [5.0]])
    ranker = EmbeddingRanker(["a", "b", "c"], vectors, at(x=[0.0]), popularity_N=np.array([0, 0, 8]), gamma=3.0)
    ranking = ranker.rank(["-> x"] * 3, ["a", "b", "c"])
    assert ranking.ranks_B.tolist() == [1, 3, 2]
    assert ranking.top_ids_B_K[0] == ["a", "c", "b"]
    assert ranking.top_scores_B_K[0] == pytest.approx([0.0, -0.125, -0.25])
    # γ = 2 makes D̃ of c 1/4 as well: a tie, and both targets are third.
    ranker = EmbeddingRanker(["a", "b", "c"], vectors, at(x=[0.0]), popularity_N=np.array([0, 0, 8]), gamma=2.0)
    assert ranker.rank(["-> x"] * 2, ["b", "c"]).ranks_B.tolist() == [3, 3]


def test_all_items_equally_far_tie_with_popularity_too():
    ranker = EmbeddingRanker(["a", "b"], torch.ones(2, 3), at(x=[0.0] * 3), popularity_N=np.array([1, 5]), gamma=1.0)
    assert ranker.rank(["-> x"], ["b"]).ranks_B.tolist() == [2]


def test_masking_and_candidates():
    ranker = EmbeddingRanker(IDS, VECTORS, at(x=[0.0, 0.0]), chunk_size=2)
    ranking = ranker.rank(["-> x"] * 2, ["c", "a"], excluded_B=[["a", "unknown"], ["a", "d"]])
    assert ranking.ranks_B.tolist() == [3, 1]
    assert ranking.top_ids_B_K == [["d", "b", "c"], ["a", "b", "c"]]
    ranking = ranker.rank(["-> x"] * 2, ["c", "c"], candidates_B=[["b", "c"], ["b"]])
    assert ranking.ranks_B.tolist() == [2, 4]
    assert ranking.top_ids_B_K == [["b", "c"], ["b"]]


def test_completions_without_an_item_are_last_and_not_encoded():
    seen = []

    def encoder(texts):
        seen.extend(texts)
        return np.zeros((len(texts), 2))

    ranker = EmbeddingRanker(IDS, VECTORS, encoder)
    ranking = ranker.rank(["no marker", "-> x", "stops ->"], ["a", "b", "a"])
    assert ranking.ranks_B.tolist() == [4, 3, 4]
    assert seen == ["x"]
    assert [len(row) for row in ranking.top_ids_B_K] == [0, 4, 0]
    assert ranker.rank(["no marker"], ["a"]).ranks_B.tolist() == [4]
    assert ranker.rank([], []).ranks_B.tolist() == []


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), chunk_size=st.integers(1, 30), gamma=st.sampled_from([0.0, 0.7]))
def test_agrees_with_the_whole_matrix(seed, chunk_size, gamma):
    random = np.random.default_rng(seed)
    n_items, n_rows = 23, 4
    vectors = random.integers(-2, 3, (n_items, 3)).astype(float)  # a small grid: many equal vectors
    written = random.integers(-2, 3, (n_rows, 3)).astype(float)
    counts = random.integers(0, 5, n_items).astype(float)
    targets = random.integers(0, n_items, n_rows)
    ids = [str(item) for item in range(n_items)]
    ranker = EmbeddingRanker(
        ids,
        vectors,
        lambda texts: written[[int(text) for text in texts]],
        popularity_N=counts,
        gamma=gamma,
        chunk_size=chunk_size,
    )
    ranking = ranker.rank([f"-> {row}" for row in range(n_rows)], [ids[t] for t in targets], top_k=5)

    distance = np.sqrt(((written[:, None] - vectors[None]) ** 2).sum(-1))
    if gamma:
        w = (counts - counts.min()) / max(np.ptp(counts), 1e-12)
        low, spread = distance.min(1, keepdims=True), np.ptp(distance, axis=1)[:, None]
        distance = (distance - low) / np.where(spread > 0, spread, 1) * (1 + w) ** -gamma
    distance = distance.round(5)
    for row, target in enumerate(targets):
        at_least_as_near = distance[row] <= distance[row, target]
        assert ranking.ranks_B[row] == at_least_as_near.sum()
        near = sorted(distance[row])[:5]
        assert [-score for score in ranking.top_scores_B_K[row]] == pytest.approx(near, abs=2e-5)


def test_equal_vectors_tie_wherever_they_stand_in_a_chunk():
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(1, 77, generator=generator)
    others = torch.randn(60, 77, generator=generator) * 9
    vectors = torch.cat([vector, others, vector, others, vector])
    ids = [str(item) for item in range(len(vectors))]
    query = torch.randn(1, 77, generator=generator)
    ranker = EmbeddingRanker(ids, vectors, lambda texts: query.expand(len(texts), -1), chunk_size=37)
    assert ranker.rank(["-> x"] * 3, ["0", "61", "122"]).ranks_B.tolist() == [3, 3, 3]


def test_clear_errors():
    encoder = at(x=[0.0, 0.0])
    with pytest.raises(ValueError, match=r"gamma is 1.0 but there is nothing to reweigh by"):
        EmbeddingRanker(IDS, VECTORS, encoder, gamma=1.0).rank(["-> x"], ["a"])
    for gamma in (-1.0, 101.0, float("nan")):
        with pytest.raises(ValueError, match=r"expected 0 to 100"):
            EmbeddingRanker(IDS, VECTORS, encoder, gamma=gamma)
    with pytest.raises(ValueError, match=r"target 'z' is not one of the 4 items"):
        EmbeddingRanker(IDS, VECTORS, encoder).rank(["-> x"], ["z"])
    with pytest.raises(ValueError, match=r"shape \(4, D\), found \(3, 2\)"):
        EmbeddingRanker(IDS, VECTORS[:3], encoder)
    with pytest.raises(ValueError, match=r"popularity_N must have shape \(4,\), found \(2,\)"):
        EmbeddingRanker(IDS, VECTORS, encoder, popularity_N=np.ones(2), gamma=1.0)
    with pytest.raises(ValueError, match=r"popularity_N holds NaN"):
        EmbeddingRanker(IDS, VECTORS, encoder, popularity_N=np.array([1, 2, np.nan, 0]), gamma=1.0)
    with pytest.raises(ValueError, match=r"item 'b' holds NaN"):
        EmbeddingRanker(["a", "b"], np.array([[0.0], [np.nan]]), encoder)
    with pytest.raises(ValueError, match=r"4 item ids but only 1 different"):
        EmbeddingRanker(["a"] * 4, VECTORS, encoder)
    with pytest.raises(ValueError, match=r"chunk_size must be 1 or more"):
        EmbeddingRanker(IDS, VECTORS, encoder, chunk_size=0)
    with pytest.raises(ValueError, match=r"gave shape \(1, 3\), the items ask for \(1, 2\)"):
        EmbeddingRanker(IDS, VECTORS, at(x=[0.0] * 3)).rank(["-> x"], ["a"])
    with pytest.raises(ValueError, match=r"the encoder gave NaN or infinity for 'x'"):
        EmbeddingRanker(IDS, VECTORS, at(x=[0.0, float("nan")])).rank(["-> x"], ["a"])
