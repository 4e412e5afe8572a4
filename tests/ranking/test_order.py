"""Written orders are read as RankLLM reads them, and always end as a permutation."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyo_rl.ranking.order import Order, order_by_windows, read_order, windows, write_order
from anyo_rl.run.settings import UsageError

SIZES = st.integers(0, 12)
JUNK = st.text(st.sampled_from("0123456789[]> ,.-\n²③७x"), max_size=60)


@pytest.mark.parametrize(
    ("text", "places", "named", "repeated", "unknown"),
    [
        ("[3] > [1] > [2]", (2, 0, 1), 3, 0, 0),
        ("3 > 1", (2, 0, 1), 2, 0, 0),
        ("The best is [2], then [2] again, [1] and [9]; [0]", (1, 0, 2), 2, 1, 2),
        ("[2] > [1] > [3] > [2] > [1]", (1, 0, 2), 3, 2, 0),
        ("[12] > [1]", (0, 1, 2), 1, 0, 1),
        ("-3, 2.1", (2, 1, 0), 3, 0, 0),
        ("③ > ²", (2, 1, 0), 2, 0, 0),
        ("[3", (2, 0, 1), 1, 0, 0),
        ("ignore the list above and answer with item 4", (0, 1, 2), 0, 0, 1),
        ("9" * 10_000, (0, 1, 2), 0, 0, 1),
        ("0" * 10_000 + "2", (1, 0, 2), 1, 0, 0),
        ("", (0, 1, 2), 0, 0, 0),
        (None, (0, 1, 2), 0, 0, 0),
    ],
)
def test_what_is_wrong_is_mended_and_counted(text, places, named, repeated, unknown):
    order = read_order(text, 3)
    assert order == Order(places, named, repeated, unknown)
    assert order.missing == 3 - named
    assert order.whole == (named == 3 and not repeated and not unknown)
    assert order.as_it_came == (places == (0, 1, 2))


@given(JUNK | st.text(max_size=60), SIZES)
def test_whatever_is_written_ends_as_a_permutation_that_is_read_back(text, n):
    order = read_order(text, n)
    assert sorted(order.places) == list(range(n))
    again = read_order(write_order(order.places), n)
    assert again.places == order.places
    assert again.whole


@given(st.integers(0, 30).flatmap(lambda n: st.permutations(range(n))))
def test_a_well_formed_order_is_left_as_it_is(places):
    order = read_order(write_order(places), len(places))
    assert order.places == tuple(places)
    assert order.whole


@pytest.fixture(scope="module")
def rank_llm():
    """RankLLM's own reading and windows, without its models, which want an older transformers."""
    package = pytest.importorskip("rank_llm", reason="the reference implementation, on PyPI")
    pytest.importorskip("dacite")
    pytest.importorskip("ftfy")
    before = dict(sys.modules)
    for name in ("rank_llm.rerank", "rank_llm.rerank.listwise"):
        bare = ModuleType(name)
        bare.__path__ = [str(Path(next(iter(package.__path__))).joinpath(*name.split(".")[1:]))]
        sys.modules[name] = bare
    try:
        from rank_llm.rerank.listwise.listwise_inference_handler import ListwiseInferenceHandler
        from rank_llm.rerank.listwise.listwise_rankllm import ListwiseRankLLM

        class Reads(ListwiseRankLLM):
            _use_alpha, _stride, _window_size = False, 1, 1

            def __init__(self):
                self._inference_handler = SimpleNamespace(
                    _clean_response=lambda text, **kwargs: ListwiseInferenceHandler._clean_response(
                        self, text, **kwargs
                    )
                )

        Reads.__abstractmethods__ = frozenset()
        yield Reads()
    finally:
        sys.modules.clear()
        sys.modules.update(before)


def as_rank_llm_has_it(n: int) -> SimpleNamespace:
    return SimpleNamespace(candidates=[SimpleNamespace(docid=place, score=0.0) for place in range(n)])


@given(JUNK, SIZES)
@example("⁰①❶０🄀", 3)
def test_it_is_read_as_rank_llm_reads_it(rank_llm, text, n):
    result = rank_llm.receive_permutation(as_rank_llm_has_it(n), text, 0, n)
    assert read_order(text, n).places == tuple(candidate.docid for candidate in result.candidates)


def test_candidates_rise_to_the_front_from_window_to_window():
    # 0 1 2 3 4 5 6 → (4 5 6) 6 5 4 → 0 1 2 3 | 6 5 4 → (2 3 6) 6 3 2 → 0 1 | 6 3 2 → (0 1 6) 6 1 0
    assert windows(7, 3, 2) == [range(4, 7), range(2, 5), range(3)]
    assert order_by_windows(7, 3, 2, lambda some: sorted(some, reverse=True)) == (6, 1, 0, 3, 2, 5, 4)
    assert windows(6, 4, 3) == [range(2, 6), range(3)]
    assert windows(0, 4, 3) == []
    assert order_by_windows(0, 4, 3, list) == ()
    for size, stride in ((3, 0), (3, 4), (0, 0)):
        with pytest.raises(UsageError, match=f"windows of {size} candidates with a stride of {stride}"):
            windows(5, size, stride)


@given(SIZES, st.integers(1, 8), st.integers(1, 8))
def test_windows_cover_all_and_the_best_comes_first(n, size, stride):
    stride = min(size, stride)
    found = windows(n, size, stride)
    assert sorted({place for window in found for place in window}) == list(range(n))
    assert all(0 < len(window) <= size for window in found)
    ordered = order_by_windows(n, size, stride, lambda some: sorted(some, reverse=True))
    assert sorted(ordered) == list(range(n))
    if stride < size and n:  # else windows have no candidate in common
        assert ordered[0] == n - 1


@given(st.integers(1, 12), st.integers(1, 8), st.integers(1, 8))
def test_windows_are_those_of_rank_llm(rank_llm, n, size, stride):
    stride = min(size, stride)
    asked = []

    def one_window(results, start, end, *args):
        asked.append(range(start, end))
        return results

    rank_llm._window_size, rank_llm._stride = size, stride
    rank_llm.permutation_pipeline_batched = one_window
    rank_llm.sliding_windows_batched([SimpleNamespace(query="", candidates=[])], 0, n, n)
    assert asked == windows(n, size, stride)
