import dataclasses
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyo_rl.data.sequences import HeldOut
from anyo_rl.metrics import top_items
from anyo_rl.students.choice import choose_in_turn, choose_on_validation
from anyo_rl.students.item_knn import KNN_GRID, ItemKNN, KnnSettings, choose_item_knn, fit_item_knn
from anyo_rl.students.popularity import fit_popularity
from anyo_rl.students.protocol import rows_at_once

PLAIN = {"history_decay": 1.0, "gap_decay": 1.0, "backward": 1.0, "source_power": 0.0, "target_power": 0.0}

sequences_of_items = st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=8)


def knn_of(sequences, n_items, **settings) -> ItemKNN:
    return fit_item_knn(sequences, n_items, KnnSettings(**settings))


def slow_item_knn(sequences, histories, n_items, *, history_decay, gap_decay, backward, powers, shrinkage, window, k):
    """The definition, in loops."""
    counts = [sum(item in sequence for sequence in sequences) for item in range(n_items)]
    similarity = np.zeros((n_items, n_items))
    for sequence in sequences:
        for p in range(len(sequence)):
            for q in range(p + 1, min(len(sequence), p + window + 1)):
                similarity[sequence[p], sequence[q]] += gap_decay ** (q - p - 1)
                similarity[sequence[q], sequence[p]] += backward * gap_decay ** (q - p - 1)
    for i in range(n_items):
        for j in range(n_items):
            similarity[i, j] /= (max(counts[i], 1) + shrinkage) ** powers[0]
            similarity[i, j] /= (max(counts[j], 1) + shrinkage) ** powers[1]
        order = sorted(range(n_items), key=lambda j: (-similarity[i, j], j))
        similarity[i, order[k:]] = 0
    tie_break = similarity[similarity > 0].min(initial=np.inf)
    tie_break = 1.0 if np.isinf(tie_break) else tie_break
    scores = np.zeros((len(histories), n_items))
    for row, history in enumerate(histories):
        for item in set(history):
            age = history[::-1].index(item)
            scores[row] += history_decay**age * similarity[item]
        scores[row] += np.array(counts) / max(*counts, 1) * tie_break * 1e-3
    return scores


def test_popularity_counts_users_not_events():
    sequences = [[0, 0, 0, 2], [2, 1], [2]]
    assert fit_popularity(sequences, 4).counts.tolist() == [1, 1, 3, 0]
    scores = fit_popularity(sequences, 4).scores([[0], []])
    assert scores.tolist() == [[1, 1, 3, 0]] * 2
    assert scores.dtype == np.float32


def test_item_knn_by_hand():
    sequences = [[0, 1, 2], [0, 1], [3, 1]]
    scores = knn_of(sequences, 4, **PLAIN).similarity.toarray()
    # 1 stands with 0 twice, with 2 once, with 3 once; 0 and 2 meet once, two apart.
    assert scores.tolist() == [[0, 2, 1, 0], [2, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]]
    forward = knn_of(sequences, 4, **(PLAIN | {"backward": 0.0, "gap_decay": 0.5})).similarity.toarray()
    assert forward.tolist() == [[0, 2, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    cosine = knn_of(sequences, 4, **(PLAIN | {"source_power": 0.5, "target_power": 0.5})).similarity.toarray()
    assert cosine[0, 1] == pytest.approx(2 / np.sqrt(2 * 3))
    chance = knn_of(sequences, 4, **(PLAIN | {"source_power": 1.0})).similarity.toarray()
    assert chance[1].tolist() == pytest.approx([2 / 3, 0, 1 / 3, 1 / 3])


def test_the_latest_item_of_a_history_counts_most():
    sequences = [[0, 2], [1, 3]]
    settings = PLAIN | {"history_decay": 0.5, "backward": 0.0}
    scores = knn_of(sequences, 4, **settings).scores([[0, 1], [1, 0], [0, 1, 0]])
    assert scores[0].round(2).tolist() == [0, 0, 0.5, 1]
    assert scores[1].round(2).tolist() == [0, 0, 1, 0.5]
    assert scores[2].round(2).tolist() == [0, 0, 1, 0.5]  # 0 counts once, where it was last


def test_what_is_bought_again_is_its_own_neighbour():
    knn = knn_of([[0, 0], [0, 0], [0, 1]], 3, **(PLAIN | {"backward": 0.0}))
    assert top_items(knn.scores([[0]]), 2)[0] == [[0, 1]]


def test_without_neighbours_popularity_decides():
    sequences = [[0, 1], [2], [2], [3], [3], [3]]
    knn = knn_of(sequences, 5)
    assert top_items(knn.scores([[], [4]]), 3)[0] == [[3, 2, 0], [3, 2, 0]]
    assert top_items(knn.scores([[0]]), 3)[0] == [[1, 3, 2]]  # one co-occurrence beats any popularity


def test_neighbours_are_bounded_and_ties_go_to_the_lower_index():
    knn = knn_of([[0, 1], [0, 2], [0, 3], [0, 3]], 4, neighbours=2, **(PLAIN | {"backward": 0.0}))
    assert knn.similarity.toarray()[0].tolist() == [0, 1, 0, 2]
    assert knn_of([[0, 1]], 2, neighbours=99).similarity.nnz == 2


@settings(max_examples=40, deadline=None)
@given(
    sequences_of_items,
    st.lists(st.lists(st.integers(0, 6), max_size=6), max_size=4),
    st.sampled_from([0.3, 1.0]),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([(0.0, 0.0), (0.5, 0.5), (1.0, 0.3)]),
    st.sampled_from([0.0, 2.0]),
    st.sampled_from([1, 3, 50]),
    st.sampled_from([1, 3, 50]),
)
def test_item_knn_against_loops(
    sequences, histories, history_decay, gap_decay, backward, powers, shrinkage, window, k
):
    ours = knn_of(
        sequences,
        7,
        history_decay=history_decay,
        gap_decay=gap_decay,
        backward=backward,
        source_power=powers[0],
        target_power=powers[1],
        shrinkage=shrinkage,
        window=window,
        neighbours=k,
    ).scores(histories)
    expected = slow_item_knn(
        sequences,
        histories,
        7,
        history_decay=history_decay,
        gap_decay=gap_decay,
        backward=backward,
        powers=powers,
        shrinkage=shrinkage,
        window=window,
        k=k,
    )
    assert ours.shape == (len(histories), 7)
    assert ours.dtype == np.float32
    if k >= 7:  # with fewer neighbours, equal similarities may differ in their last bit and in who is kept
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
    else:
        np.testing.assert_allclose(np.sort(ours).sum(), expected.sum(), rtol=1e-5, atol=1e-7)


def test_scores_do_not_depend_on_the_batch():
    generator = np.random.default_rng(0)
    sequences = [generator.integers(0, 20, size=generator.integers(0, 9)).tolist() for _ in range(60)]
    knn = knn_of(sequences, 20)
    whole = knn.scores(sequences)
    np.testing.assert_array_equal(whole, np.vstack([knn.scores([history]) for history in sequences]))
    assert knn.scores([]).shape == (0, 20)


def test_nothing_to_learn_from():
    for sequences in ([], [[]], [[3]]):
        assert np.isfinite(knn_of(sequences, 5).scores([[1, 1], []])).all()
        assert np.isfinite(fit_popularity(sequences, 5).scores([[1]])).all()


def test_choosing_takes_the_best_on_validation():
    # What follows 0 is 1; counted backwards as well, 2 (which always comes before 0) wins.
    sequences = [[2, 0], [2, 0], [2, 0], [0, 1], [0, 1]]
    fit = partial(fit_item_knn, sequences, 3)
    grid = [KnnSettings(source_power=0.0, backward=backward) for backward in (1.0, 0.0, 0.1)]
    choice = choose_on_validation(fit, grid, HeldOut([[0], [0]], [1, 1], [[]] * 2))
    assert choice.settings.backward == 0.0  # as good as 0.1, and tried first
    assert choice.value == 1.0
    assert [value for _, value in choice.trials] == [pytest.approx(0.6309, abs=1e-4), 1.0, 1.0]
    masked = choose_on_validation(fit, grid[:1], HeldOut([[2, 0]], [1], [[2, 0]]))
    assert masked.value == 1.0
    np.testing.assert_array_equal(choice.fitted.scores([[0]]), fit(choice.settings).scores([[0]]))
    assert len(set(KNN_GRID)) == 27


def test_an_item_knn_is_chosen_as_if_each_was_fitted():
    generator = np.random.default_rng(0)
    sequences = [generator.integers(0, 20, length).tolist() for length in generator.integers(2, 9, 60)]
    asked = HeldOut([one[:-1] for one in sequences], [one[-1] for one in sequences], [[]] * len(sequences))
    plain = choose_on_validation(partial(fit_item_knn, sequences, 20), KNN_GRID, asked)
    found = choose_item_knn(sequences, 20, asked)
    assert found.trials == plain.trials
    assert found.settings == plain.settings
    assert np.array_equal(found.fitted.scores(asked.histories), plain.fitted.scores(asked.histories))


def test_settings_are_chosen_one_after_the_other():
    """The second is tried with the best of the first; what a setting begins with is not fitted again."""
    tried = []

    @dataclasses.dataclass(frozen=True)
    class Pair:
        a: int = 1
        b: int = 1

    class Fitted:
        n_items = 4

        def __init__(self, settings):
            tried.append((settings.a, settings.b))
            self.rank = {(1, 1): 3, (2, 1): 2, (3, 1): 4, (2, 5): 1}[tried[-1]]

        def scores(self, histories):
            return np.array([[1.0 if item < self.rank - 1 else 0.5 if item == 3 else 0.0 for item in range(4)]])

    choice = choose_in_turn(Fitted, Pair(), {"a": (2, 3), "b": (5,)}, HeldOut([[0]], [3], [[]]))
    assert tried == [(1, 1), (2, 1), (3, 1), (2, 5)]
    assert (choice.settings, choice.value, choice.fitted.rank) == (Pair(2, 5), 1.0, 1)
    assert [settings for settings, _ in choice.trials] == [Pair(*pair) for pair in tried]


def test_blocks_of_scores_are_bounded():
    assert (rows_at_once(10), rows_at_once(65_536), rows_at_once(1_000_000)) == (512, 512, 33)
    assert rows_at_once(10**9) == 1


def test_wrong_input_is_an_error():
    with pytest.raises(ValueError, match="index 7 in `sequences`"):
        knn_of([[7]], 5)
    with pytest.raises(ValueError, match="index -1 in `histories`"):
        knn_of([[1]], 5).scores([[-1]])
    with pytest.raises(ValueError, match="gap_decay=0"):
        knn_of([[1]], 5, gap_decay=0)
    with pytest.raises(ValueError, match="neighbours=0"):
        knn_of([[1]], 5, neighbours=0)
    with pytest.raises(ValueError, match="one at least"):
        choose_on_validation(partial(fit_item_knn, [[1]], 5), KNN_GRID, HeldOut([], [], []))
    with pytest.raises(ValueError, match="empty grid"):
        choose_on_validation(partial(fit_item_knn, [[1]], 5), [], HeldOut([[1]], [2], [[]]))
