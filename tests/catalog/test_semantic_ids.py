import logging
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anyo_rl.catalog.semantic_ids import (
    SemanticIds,
    codebook_size,
    computed_ids,
    parse_ids,
    published_ids,
    quantise,
    read_ids,
    write_ids,
)
from anyo_rl.data.load import load_interactions

# Two far groups; within each, two near ones; within those, two nearer still. Split in two at each level, what is left
# over is ±8, then ±1, then ±0.1 along the only axis.
EIGHT = np.array([[first + second + third] for first in (-8, 8) for second in (-1, 1) for third in (-0.1, 0.1)])


def codes_of(items: list[str | None]) -> SemanticIds:
    ids = [f"i{index}" for index in range(len(items))]
    return published_ids(pl.DataFrame({"item_id": ids, "sid": items}), "sid")


def check(ids: SemanticIds, item_ids: list[str]) -> None:
    """What holds for all semantic ids: one for each item, no two the same."""
    assert list(ids.codes) == item_ids
    assert len(set(ids.codes.values())) == len(item_ids)
    assert {code for codes in ids.codes.values() for code in codes} == set(ids.tokens())
    assert len(set(ids.tokens())) == len(ids.tokens())


def test_residual_codes_of_a_line():
    pytest.importorskip("faiss", reason="needs the `semantic` extra")
    codes = quantise(EIGHT, n_levels=3, n_codes=2)
    assert codes.shape == (8, 3)
    assert codes.dtype == np.int32
    # Codes are names: which of the two halves is 0 does not matter, but it is the same at all nodes of a level.
    halves = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
    flipped = codes ^ codes[0]
    assert flipped.tolist() == halves.tolist()
    assert len(set(map(tuple, codes.tolist()))) == 8


def test_residual_codes_are_the_nearest_centroids_of_what_is_left_over():
    pytest.importorskip("faiss", reason="needs the `semantic` extra")
    vectors = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    codes = quantise(vectors, n_levels=3, n_codes=8, seed=1)
    assert codes.min() >= 0
    assert codes.max() <= 7
    left = vectors.astype(np.float64)
    for level in range(3):
        # At a fixed point of k-means a centroid is the mean of its items, and each item is with its nearest one.
        means = np.stack([left[codes[:, level] == code].mean(0) for code in range(8)])
        distance = ((left[:, None] - means[None]) ** 2).sum(-1)
        best = distance.min(1)
        own = distance[np.arange(200), codes[:, level]]
        assert (own <= best + 0.15 * best.mean()).mean() > 0.9
        before = (left**2).sum()
        left = left - means[codes[:, level]]
        assert (left**2).sum() < before


vectors = st.integers(4, 40).flatmap(
    lambda n: arrays(np.float32, st.tuples(st.just(n), st.integers(1, 6)), elements=st.integers(-3, 3).map(float))
)


@settings(max_examples=60)
@given(vectors, st.integers(1, 4), st.sampled_from([2, 4]), st.integers(0, 5))
def test_ids_of_any_vectors_are_unique_and_repeat(vectors_N_D, n_levels, n_codes, seed):
    pytest.importorskip("faiss", reason="needs the `semantic` extra")
    codes = quantise(vectors_N_D, n_levels=n_levels, n_codes=n_codes, seed=seed)
    assert codes.shape == (len(vectors_N_D), n_levels)
    assert ((codes >= 0) & (codes < n_codes)).all()
    assert np.array_equal(codes, quantise(vectors_N_D.copy(), n_levels=n_levels, n_codes=n_codes, seed=seed))
    for i, j in zip(*np.triu_indices(len(codes), 1), strict=True):
        if np.array_equal(vectors_N_D[i], vectors_N_D[j]):
            assert np.array_equal(codes[i], codes[j])
    item_ids = [str(i) for i in range(len(codes))]
    ids = computed_ids(item_ids, codes)
    check(ids, item_ids)
    assert ids.n_collisions == len(codes) - len(np.unique(codes, axis=0))


texts = st.lists(st.tuples(*[st.integers(0, 2)] * 2, st.integers(-1, 1)), min_size=1, max_size=30)


@given(texts)
def test_published_ids_are_unique_whatever_repeats(rows):
    # Some have a third code, and some of those are what a number would be if it took the letter c.
    written = [f"<a_{a}> <b_{b}>" + (f"<c_{c}>" if c >= 0 else "") for a, b, c in rows]
    ids = codes_of(written)
    check(ids, [f"i{index}" for index in range(len(rows))])
    assert ids.n_collisions == len(rows) - len(set(rows))
    for text, codes in zip(written, ids.codes.values(), strict=True):
        assert "".join(codes).startswith(text.replace(" ", ""))
        assert len(codes) == text.count("<") + (written.count(text) > 1)


def test_items_that_share_all_codes_are_numbered(caplog):
    with caplog.at_level(logging.INFO):
        ids = computed_ids(["u", "v", "w", "x", "y"], np.array([[0, 1], [0, 2], [0, 1], [0, 1], [3, 1]]))
    assert ids.n_collisions == 2
    assert ["".join(codes) for codes in ids.codes.values()] == [
        "<a_0><b_1><c_0>",
        "<a_0><b_2>",
        "<a_0><b_1><c_1>",
        "<a_0><b_1><c_2>",
        "<a_3><b_1>",
    ]
    assert ids.tokens() == ["<a_0>", "<a_3>", "<b_1>", "<b_2>", "<c_0>", "<c_1>", "<c_2>"]
    assert caplog.messages == [
        "2 of 5 semantic ids were taken: the 3 items that share one have a number appended",
    ]


def test_codes_are_ordered_by_level_and_number():
    assert codes_of(["<b_10><a_2>", "<a_10><b_9>"]).tokens() == ["<a_2>", "<a_10>", "<b_9>", "<b_10>"]


@pytest.mark.parametrize("bad", [None, "", "  ", "a_1", "<a_1>x", "<A_1>", "<a_>", "<a_1><b>", 7])
def test_what_is_no_semantic_id_is_refused(bad):
    with pytest.raises(ValueError, match=r"column 'sid': item 'i1' has the semantic id .* \(1 such of 2 items\)"):
        parse_ids({"i0": "<a_1>", "i1": bad}, "column 'sid'")


def test_a_column_that_is_not_there_and_ids_without_a_letter_left_are_refused():
    with pytest.raises(ValueError, match=r"no column 'codes': set semantic_id_column to one of \['item_id', 'sid'\]"):
        published_ids(pl.DataFrame({"item_id": ["a"], "sid": ["<a_1>"]}), "codes")
    with pytest.raises(ValueError, match="1 items have the codes of another one, and no letter is left"):
        codes_of(["<z_1>", "<z_1>"])


def test_ids_are_read_back_from_their_file(tmp_path):
    ids = codes_of(["<a_1><b_2>", "<a_1> <b_2>", "<a_0>"])
    (tmp_path / "ids.json").write_text(write_ids(ids), encoding="utf-8")
    assert read_ids(tmp_path / "ids.json") == ids
    for text in ("{half", "[]", '{"n_collisions": 0}', '{"n_collisions": 0, "codes": {"a": "x"}}'):
        (tmp_path / "ids.json").write_text(text)
        with pytest.raises(ValueError, match=r"ids\.json: "):
            read_ids(tmp_path / "ids.json")


def test_arguments_out_of_range_are_refused():
    for arguments, message in (
        ({"n_levels": 0}, "n_levels is 0: expected 1 to 8"),
        ({"n_codes": 3}, "n_codes is 3: expected a power of two"),
        ({"n_codes": 1}, "n_codes is 1: expected a power of two"),
        ({"n_codes": 16}, "n_codes is 16, more than the 8 items: lower it"),
    ):
        with pytest.raises(ValueError, match=message):
            quantise(EIGHT, **arguments)
    for wrong in (np.zeros((0, 3)), np.zeros(4), np.zeros((4, 0))):
        with pytest.raises(ValueError, match=r"expected \(N, D\)"):
            quantise(wrong)
    with pytest.raises(ValueError, match="row 2 holds NaN or infinity"):
        quantise(np.array([[0.0], [1.0], [np.nan], [np.inf]]), n_codes=2)


def test_without_faiss_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'anyo-rl\[semantic\]', or name a column of published ids"):
        quantise(EIGHT, n_codes=2)


def test_codebook_sizes():
    sizes = {1: 2, 15: 2, 16: 2, 31: 2, 32: 4, 504: 32, 2047: 128, 2048: 256, 1_000_000: 256}
    assert {n: codebook_size(n) for n in sizes} == sizes


def test_office_brings_semantic_ids(data_folder):
    if not (data_folder / "office").is_dir():
        pytest.skip("no office/ in ANYO_RL_DATA")
    items = load_interactions("office", data_dir=str(data_folder)).items
    ids = published_ids(items, "sid")
    check(ids, items["item_id"].to_list())
    assert len(ids.codes) == 3459
    assert ids.n_collisions == 15  # pairs
    assert "".join(ids.codes["0"]) == "<a_60><b_159><c_203>"
    assert sum(len(codes) == 4 for codes in ids.codes.values()) == 30
