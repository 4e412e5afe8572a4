"""What docs/ranking.md shows of Python is what happens."""

import re
from pathlib import Path

import numpy as np
import pytest

from anyo_rl.teacher.make import make_tiny_teacher

DOCS = (Path(__file__).parents[2] / "docs" / "ranking.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def names(small_catalog, small_tokens, tmp_path_factory):
    """What the page takes for granted."""
    return {
        "catalog": small_catalog,
        "tokens": small_tokens,
        "model": make_tiny_teacher(small_tokens.tokenizer, hidden_size=32, n_layers=2, seed=0).eval(),
        "prompt": "Alien, mug",
        "reasonings": [["likes Alien"], ["wants Toys"]],
        "targets": ["i0", "i3"],
        "seen": [["i9", "i8"], []],
        "candidates": [["i0", "i1", "i2", "i9"], ["i4", "i5"]],
        "written": ["likes Alien -> Alien 4", "wants Toys -> Toy"],
        "popularity": np.arange(10),
        "folder": tmp_path_factory.mktemp("vectors"),
    }


def run(words: str, names: dict) -> dict:
    """Runs the block of code that has these words, after those above it that need no engine."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)
    found = dict(names)
    for block in blocks:
        if "vllm" not in block:
            exec(block, found)
        if words in block:
            return found
    raise AssertionError(f"no block has {words!r}")


def test_ranks_candidates_and_mixtures(names):
    found = run("LikelihoodRanker", names)
    assert set(found["ranking"].top_ids_B_K[0]) == {"i0", "i1", "i2"}  # i9 was seen
    assert found["ranking"].ranks_B[0] <= 3
    assert found["ranking"].ranks_B[1] == 10  # not retrieved
    assert found["mixture"].ranks_B.shape == (1,)


def test_items_alone(names):
    found = run("decode_items", names)
    for answers in (found["best"], found["drawn"]):
        assert [len(row) for row in answers] == [3, 3]
        assert {item for row in answers for item in row} <= set(names["catalog"].item_ids)
    assert len(set(found["best"][0])) == 3


def test_grounding(names):
    found = run("choose_gamma", names)
    assert found["choice"].value == max(value for _, value in found["choice"].trials)
    assert set(found["ranking"].top_ids_B_K[1]) == {"i4", "i5"}
    assert found["ranking"].ranks_B.tolist()[1] == 10
