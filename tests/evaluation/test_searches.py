"""The table of searches by hand, and the picture of a tree."""

import numpy as np
import polars as pl
import pytest

from anyo_rl.evaluation.report.tree import Asked, layout, tree_page
from anyo_rl.evaluation.searches import ahead, curves, equal_tokens, search_cells
from anyo_rl.evaluation.summarise import without_searches
from anyo_rl.evaluation.summary import EqualTokens, Summary
from anyo_rl.evaluation.table import markdown_table
from anyo_rl.metrics.intervals import Interval
from anyo_rl.sampling.protocol import Sample
from anyo_rl.search.answers import Recommendation
from anyo_rl.search.tree import Ending, Node, Tree


def frame(ranks, tokens=None):
    ids = [f"u{i}:1" for i in range(len(ranks))]
    columns = {"example_id": ids, "user_id": [f"u{i}" for i in range(len(ranks))], "rank": ranks}
    if tokens is not None:
        columns |= {
            "n_tokens": [float(tokens)] * len(ranks),
            "n_nodes": [None] * len(ranks),
            "seconds": [0.5] * len(ranks),
        }
    return pl.DataFrame(columns, schema_overrides={"n_nodes": pl.Float64()})


FRAMES = {
    "sft": {
        "mixture": frame([1, 1]),
        "mixture-2": frame([1, 20], 60),
        "mixture-4": frame([3, 1], 120),
        "mcts-4": frame([1, 1], 100),
        "tree-4": frame([1, 1], 130),  # more than any mixture
        "greedy-1": frame([20, 20], 25),  # less than half of any
    }
}


def test_a_search_is_set_against_the_smallest_mixture_that_writes_as_much():
    found = equal_tokens(FRAMES, seed=0)
    assert {mode: one.against for mode, one in found["sft"].items()} == {"mcts-4": "mixture-4"}
    assert found["sft"]["mcts-4"].metrics["ndcg@10"].mean == pytest.approx((1 + 1 - 0.5 - 1) / 2)
    assert without_searches(FRAMES) == {"sft": {"mixture": FRAMES["sft"]["mixture"]}}


def test_over_seeds_examples_are_paired_within_their_seed():
    """By hand, NDCG@10 at rank 1 is 1, at rank 3 it is 1/2: seed 0 gains 1 − 1/2 and 0, seed 1 nothing and 1/2 − 1."""

    def of(tokens, *ranks_of_seeds):
        parts = [frame(ranks, tokens).with_columns(seed=pl.lit(seed)) for seed, ranks in enumerate(ranks_of_seeds)]
        return pl.concat(parts)

    frames = {"sft": {"mixture-4": of(120, [3, 1], [1, 1]), "mcts-4": of(100, [1, 1], [1, 3])}}
    gain = equal_tokens(frames, seed=0)["sft"]["mcts-4"].metrics["ndcg@10"]
    assert gain.by_seed == pytest.approx((0.25, -0.25))
    assert gain.mean == pytest.approx(0)
    assert gain.n == 4


def summary(low):
    metrics = {"n_tokens": Interval(100.0), "seconds": Interval(0.25), "ndcg@10": Interval(0.5, 0.4, 0.6, 9)}
    mixture = {"n_tokens": Interval(120.0), "n_nodes": Interval(1234.0), "ndcg@10": Interval(0.4)}
    beside = {"mcts-4": EqualTokens("mixture-5", {"ndcg@10": Interval(0.1, low, 0.2, 9)})}
    return Summary(stages={"s|ft": {"mcts-4": metrics, "mixture-5": mixture}}, equal_tokens={"s|ft": beside})


def test_the_table_and_what_it_says_in_words():
    header, body = search_cells(summary(0.05))
    assert body == [
        ["s|ft", "mcts", "4", "100", "–", "250", "0.5000 [0.4000, 0.6000]", "+0.1000 [+0.0500, +0.2000]", "5"],
        ["s|ft", "mixture", "5", "120", "1,234", "–", "0.4000", "–", "–"],
    ]
    assert len(header) == len(body[0])
    assert "s|ft mcts-4 (+0.1000" in ahead(summary(0.05))[0]
    assert ahead(summary(-0.05)) == ["No search is ahead of a plain mixture of as many tokens by more than chance."]
    assert ahead(Summary()) == []
    assert list(curves(summary(0.0))) == ["mcts", "mixture"]
    page = markdown_table(summary(0.0))
    assert "Searches, by what a recommendation costs:" in page
    assert "No stage was evaluated." in page  # in a mode of its own
    assert Summary.from_json(summary(0.0).as_json()) == summary(0.0)
    assert EqualTokens.from_json({"against": 3}) is None


def test_a_picture_is_laid_out_without_overlaps_and_escaped():
    tree = Tree("u:1", [1], [Node(-1, Sample((), None, "stop"))])
    texts = ['<b>first & "second"</b>', "short", "a long line " * 40, "end"]
    for text, parent in zip(texts, (0, 0, 1, 1), strict=True):
        tree.nodes.append(Node(parent, Sample((3,), None, "stop"), text=text, value=0.5, name=f"{parent}.x", visits=2))
    found = Recommendation(
        ["i1", "<i2>"], [np.log(0.5), np.log(0.25)], ("x",), tree, Ending((4, 2), (0.75, 0.25)), 9, 7, 1.0
    )
    boxes, lines = layout(found)
    assert len(boxes) == 5
    assert len(lines) == 4
    for a in boxes:
        for b in boxes:
            if a is not b and a.x == b.x:
                assert a.y + a.height <= b.y or b.y + b.height <= a.y
    assert [box.chosen for box in boxes] == [True, True, False, False, True]
    page = tree_page(found, Asked("<script>alert(1)</script>", ["<u>"], "&target"), {"i1": "<img>"})
    assert "<script>" not in page
    assert "&lt;img&gt;" in page
    assert "&lt;b&gt;first &amp;" in page
    assert "weight 0.75" in page
    assert "0.5000" in page
