from itertools import product

import numpy as np
import polars as pl
import pytest

from anyo_rl.data.toy import CATEGORIES, STYLES, StatedIntent, ToyConfig, ToyWorld, make_toy_world, parse_intent
from anyo_rl.data.toy_oracle import break_ties, expected_ndcg
from anyo_rl.data.toy_routines import LONGEST_LAP, complement, routine_table

TINY = ToyConfig(n_users=60, n_categories=4, n_grades=3, n_styles=3, noise=0.2, style_fidelity=0.6, seed=3)


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return make_toy_world()


@pytest.fixture(scope="module")
def tiny() -> ToyWorld:
    return make_toy_world(TINY)


def item_sequences(world: ToyWorld) -> dict[str, list[int]]:
    rows = world.interactions.frame.group_by("user_id", maintain_order=True).agg("item_id").rows()
    return {user_id: [world.index[item_id] for item_id in items] for user_id, items in rows}


def attributes(world: ToyWorld) -> list[tuple[str, str, str]]:
    return world.interactions.items.select("category", "grade", "style").rows()


def realised_ndcg(scores_B_N: np.ndarray, targets_B: list[int]) -> np.ndarray:
    scores_B_N = break_ties(scores_B_N)
    target_B_1 = np.take_along_axis(scores_B_N, np.array(targets_B)[:, None], axis=1)
    rank_B = 1 + (scores_B_N > target_B_1).sum(axis=1)
    return np.where(rank_B <= 10, 1.0 / np.log2(1.0 + rank_B), 0.0)


def slow_prediction(world: ToyWorld, history: list[int]) -> np.ndarray:
    """A second oracle: plain loops over words, written from the description of the world and not from its tables."""
    config = world.config
    categories = CATEGORIES[: config.n_categories]
    goes_with = dict(zip(categories, categories[1:] + categories[:1], strict=True))
    items = attributes(world)
    two = [(a, b) for a in categories for b in categories if a != b]
    three = [(a, b, goes_with[b]) for a, b in two if goes_with[b] != a]

    def p_item(item, category, grade, favourite):
        p = config.noise / len(items)
        if (item[0], item[1]) == (category, grade):
            other = (1 - config.style_fidelity) / (config.n_styles - 1)
            p += (1 - config.noise) * (config.style_fidelity if item[2] == favourite else other)
        return p

    def intended(places, runs, n_events):
        visits = dict.fromkeys(places, 0)
        sequence: list[tuple[str, str]] = []
        while len(sequence) < n_events:
            for place, run in zip(places, runs, strict=True):
                for _ in range(run):
                    sequence.append((place, str(visits[place] % config.n_grades + 1)))
                    visits[place] += 1
        return sequence[:n_events]

    total = np.zeros(len(items))
    for routines in (two, three):
        for places in routines:
            for runs in product((1, 2), repeat=len(places)):
                sequence = intended(places, runs, len(history) + 1)
                for favourite in STYLES[: config.n_styles]:
                    weight = 0.5 / len(routines) / 2 ** len(places) / config.n_styles
                    for bought, (category, grade) in zip(history, sequence, strict=False):
                        weight *= p_item(items[bought], category, grade, favourite)
                    total += weight * np.array([p_item(item, *sequence[-1], favourite) for item in items])
    return total / total.sum()


def test_default_world_has_the_documented_counts(world):
    frame, items = world.interactions.frame, world.interactions.items
    assert len(items) == 504
    assert items["title"].n_unique() == items["item_id"].n_unique() == 504
    assert items["title"][0] == "tea oak 1"
    assert world.interactions.report == {"users": 2400, "items": 504, "events": len(frame)}
    assert items["item_id"].to_list() == world.item_ids
    assert items.select("category", "style", "grade").dtypes == [pl.String] * 3
    lengths = frame.group_by("user_id").len()["len"]
    assert (len(lengths), lengths.min(), lengths.max()) == (2400, 9, 16)
    assert frame.dtypes == [pl.String, pl.String, pl.Int64]
    assert frame.equals(frame.sort("user_id", "timestamp", maintain_order=True))
    assert frame.select("user_id", "timestamp").n_unique() == len(frame)
    assert sum(world.has_rationale(user_id) for user_id in item_sequences(world)) == 480


def test_same_config_same_world_and_other_seed_other_world(tiny):
    again = make_toy_world(TINY)
    assert again.interactions.frame.equals(tiny.interactions.frame)
    assert [again.has_rationale(f"u{u:02d}") for u in range(60)] == [
        tiny.has_rationale(f"u{u:02d}") for u in range(60)
    ]
    other = make_toy_world(ToyConfig(**{**TINY.__dict__, "seed": 4}))
    assert not other.interactions.frame.equals(tiny.interactions.frame)


def test_a_smaller_world_has_the_same_first_users(tiny):
    fewer = make_toy_world(ToyConfig(**{**TINY.__dict__, "n_users": 20}))
    assert fewer.interactions.frame.equals(tiny.interactions.frame.head(len(fewer.interactions.frame)))


def test_routines_are_counted_weighted_and_unrolled_as_described():
    table = routine_table(n_categories=12, n_grades=6, n_positions=17)
    sizes = [len(routine) for routine in table.routines]
    assert (sizes.count(2), sizes.count(3)) == (12 * 11 * 4, 12 * 10 * 8)
    assert table.prior_R.sum() == pytest.approx(1.0)
    assert table.prior_R[np.array(sizes) == 3].sum() == pytest.approx(0.5)
    assert len({(c.tobytes(), g.tobytes()) for c, g in zip(table.category_R_T, table.grade_R_T, strict=True)}) == 1488
    tea, lamp = CATEGORIES.index("tea"), CATEGORIES.index("lamp")
    (row,) = [
        index
        for index, routine in enumerate(table.routines)
        if [(place.category, place.run_length) for place in routine] == [(tea, 2), (lamp, 1)]
    ]
    assert table.category_R_T[row, :7].tolist() == [tea, tea, lamp, tea, tea, lamp, tea]
    assert (table.grade_R_T[row, :7] + 1).tolist() == [1, 2, 1, 3, 4, 2, 5]
    assert (table.grade_R_T[row, [6, 7, 9]] + 1).tolist() == [5, 6, 1]
    assert table.run_index_R_T[row, :4].tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize("n_categories", [3, 5, 12])
def test_complement_is_a_permutation_without_fixed_points_or_two_cycles(n_categories):
    ring = [complement(category, n_categories) for category in range(n_categories)]
    assert sorted(ring) == list(range(n_categories))
    assert all(ring[c] != c and ring[ring[c]] != c for c in range(n_categories))


def test_events_follow_the_intent_except_for_noise(world):
    items = attributes(world)
    favourite = noise = intended = 0
    for user_id, history in item_sequences(world).items():
        for position, bought in enumerate(history):
            wanted = world.truth(user_id, position)
            if world.is_noise(user_id, position):
                noise += 1
                continue
            intended += 1
            assert items[bought][:2] == (wanted.category, wanted.grade)
            favourite += items[bought][2] == wanted.style
    n_events = noise + intended
    assert noise / n_events == pytest.approx(0.1, abs=4 * (0.09 / n_events) ** 0.5)
    assert favourite / intended == pytest.approx(0.7, abs=4 * (0.21 / intended) ** 0.5)


def test_grades_climb_by_one_within_a_category_and_wrap(world):
    for user in range(30):
        last: dict[str, str] = {}
        for position in range(17):
            wanted = world.truth(f"u{user:04d}", position)
            assert wanted.previous_grade == last.get(wanted.category)
            assert wanted.grade == str(int(last.get(wanted.category, 0)) % 6 + 1)
            last[wanted.category] = wanted.grade


def test_history_oracle_equals_slow_enumeration(tiny):
    sequences = list(item_sequences(tiny).values())
    histories = [[], sequences[0][:1], sequences[1][:4], sequences[2][:-1]]
    fast = tiny.oracle_scores(histories)
    for row, history in zip(fast, histories, strict=True):
        np.testing.assert_allclose(row, slow_prediction(tiny, history), rtol=1e-9)


def test_history_oracle_equals_slow_enumeration_without_noise_or_doubt():
    sure = make_toy_world(ToyConfig(n_users=5, n_categories=3, n_grades=2, n_styles=2, noise=0.0, style_fidelity=1.0))
    histories = [history[:7] for history in item_sequences(sure).values()]
    scores = sure.oracle_scores(histories)
    for row, history in zip(scores, histories, strict=True):
        np.testing.assert_allclose(row, slow_prediction(sure, history), atol=1e-12)
    with pytest.raises(ValueError, match="probability 0"):
        sure.oracle_scores([[0, 0]])


def test_a_truncated_history_with_its_start_is_the_posterior_over_what_is_seen(tiny):
    """Summing out the first event by hand gives the same answer as `starts=[1]`."""
    history = next(iter(item_sequences(tiny).values()))[:5]
    joint = np.zeros(len(tiny.item_ids))
    for first in range(len(tiny.item_ids)):
        # p(first, seen) by the chain rule, from whole histories only.
        whole, weight = [first, *history[1:]], 1.0
        for n_seen, bought in enumerate(whole):
            weight *= tiny.oracle_scores([whole[:n_seen]])[0, bought]
        joint += weight * tiny.oracle_scores([whole])[0]
    np.testing.assert_allclose(tiny.oracle_scores([history[1:]], starts=[1])[0], joint / joint.sum(), rtol=1e-9)


def test_oracle_refuses_what_cannot_be_a_history(tiny):
    with pytest.raises(ValueError, match=r"history 1 covers positions 0 to 16.*whole histories"):
        tiny.oracle_scores([[0], [0] * 17])
    with pytest.raises(ValueError, match="found 1 starts for 2 histories"):
        tiny.oracle_scores([[0], [1]], starts=[0])
    with pytest.raises(ValueError, match="expected 0 to 35"):
        tiny.oracle_scores([[36]])


def test_no_histories_give_an_empty_table(tiny):
    assert tiny.oracle_scores([]).shape == (0, 36)
    assert tiny.intent_scores([], []).shape == (0, 36)


def test_oracles_on_held_out_users_agree_with_their_own_expectation(world):
    sequences = dict(list(item_sequences(world).items())[-500:])
    histories, targets = [s[:-1] for s in sequences.values()], [s[-1] for s in sequences.values()]
    by_history = world.oracle_scores(histories)
    by_intent = world.intent_scores(list(sequences), [len(history) for history in histories])
    np.testing.assert_allclose(by_history.sum(axis=1), 1.0)
    np.testing.assert_allclose(by_intent.sum(axis=1), 1.0)
    for scores in (by_history, by_intent):
        realised = realised_ndcg(scores, targets)
        assert realised.mean() == pytest.approx(expected_ndcg(scores).mean(), abs=4 * realised.std() / 500**0.5)
    # Not user by user, for a wrong certainty can be lucky, but in the mean whoever knows more ranks better.
    assert expected_ndcg(by_intent).mean() > expected_ndcg(by_history).mean() > 0.7
    assert realised_ndcg(by_intent, targets).mean() > realised_ndcg(by_history, targets).mean()


def test_intent_oracle_by_hand(world):
    """.9 on the wanted category and grade, .7 of it on the favourite and .05 on each other style; .1/504 anywhere."""
    wanted = world.truth("u0000", 9)
    scores = world.intent_scores(["u0000"], [9])[0]
    for score, (category, grade, style) in zip(scores, attributes(world), strict=True):
        hit = (category, grade) == (wanted.category, wanted.grade)
        assert score == pytest.approx(0.1 / 504 + 0.9 * hit * (0.7 if style == wanted.style else 0.05))
    # Favourite first, then six other styles, then three of the rest.
    discounts = [1 / np.log2(1 + rank) for rank in range(1, 11)]
    by_hand = 0.63 * discounts[0] + 0.045 * sum(discounts[1:7]) + 0.1 / 504 * sum(discounts)
    assert expected_ndcg(scores[None])[0] == pytest.approx(by_hand)


def test_expected_ndcg_takes_a_cut_off_beyond_the_catalog():
    assert expected_ndcg(np.array([[0.2, 0.8]]), k=10)[0] == pytest.approx(0.8 + 0.2 / np.log2(3))


def test_break_ties_keeps_the_order_and_separates_equals():
    scores = np.array([[0.1, 0.4, 0.1, 0.1, 0.3]])
    broken = break_ties(scores)
    assert len(set(broken[0])) == 5
    assert broken[0].argsort()[::-1][:2].tolist() == [1, 4]
    np.testing.assert_allclose(broken, scores, rtol=1e-8)
    assert break_ties(scores, seed=1).argsort().tolist() != broken.argsort().tolist()


def test_rationale_is_readable_and_true_by_construction(world):
    lines = world.rationale("u0003", 8)
    assert lines == (
        "routine: clock, bag x2, scarf x2",
        "last: bag, 2 of 2",
        "next: scarf",
        "grade: 2 then 3",
        "style: moss",
    )
    for user_id, history in list(item_sequences(world).items())[:200]:
        for position in range(LONGEST_LAP, len(history)):
            steps = world.rationale(user_id, position)
            wanted = world.truth(user_id, position)
            assert parse_intent(steps) == StatedIntent(wanted.category, wanted.grade, wanted.style)
            assert world.is_true(steps, user_id, position)
            assert all(world.true_steps(steps, user_id, position))


def test_rationale_is_refused_before_the_first_lap_is_over(world):
    with pytest.raises(ValueError, match="asked at position 5, expected 6 or more"):
        world.rationale("u0000", 5)


def test_a_false_or_garbled_reasoning_is_not_true(world):
    routine, last, following, grade, style = world.rationale("u0003", 8)
    assert not world.is_true([routine, last, "next: bag", grade, style], "u0003", 8)
    assert not world.is_true([following, "grade: 2 then 4", style], "u0003", 8)
    assert not world.is_true([following, grade, "style: oak"], "u0003", 8)
    assert not world.is_true([], "u0003", 8)
    assert world.is_true([style, following, "grade: 1 then 3"], "u0003", 8)
    assert world.true_steps(["Next  :scarf", "next: scarf", "grade: 1 then 3", ""], "u0003", 8) == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "steps",
    [
        [],
        ["next: book", "style: oak"],
        ["next: book", "grade: 2 then", "style: oak"],
        ["next: boat", "grade: 2 then 3", "style: oak"],
        ["next: book", "grade: 2 then 3", "style: oak", "style: moss"],
        ["next book", "grade: 2 then 3", "style: oak"],
    ],
)
def test_parse_intent_of_garbled_steps_is_none(steps):
    assert parse_intent(steps) is None


def test_parse_intent_forgives_blanks_case_and_order():
    steps = ["", "style :oak ", "Grade: none  then 1", "thinking", "next: Book"]
    assert parse_intent(steps) == StatedIntent("book", "1", "oak")


def test_truth_names_unknown_users_and_positions(tiny):
    with pytest.raises(KeyError):
        tiny.truth("nobody", 0)
    with pytest.raises(IndexError, match="expected 0 to 16"):
        tiny.truth("u00", 17)


@pytest.mark.parametrize("change", [{"n_categories": 2}, {"noise": 1.5}, {"min_events": 17}, {"n_users": 0}])
def test_config_refuses_values_out_of_range(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"toy world: {name} is"):
        ToyConfig(**change)
