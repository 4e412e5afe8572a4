import json

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForTokenClassification

from anyo_rl.reasoning.rows import Row
from anyo_rl.values.prm import (
    IGNORED,
    PRM_FILE,
    Prm,
    label_paths,
    labelled_example,
    padded,
    state_positions,
    state_values,
)
from tests.tables import table_of

ROWS = [
    Row(example_id="u0:1", prompt="Alien\n", target_id="i1", user_id="u", history=[]),
    Row(example_id="u1:1", prompt="mug\n", target_id="i8", user_id="u", history=[]),
]
PROMPTS = ["Alien\n", "mug and mug\n", "x\n", "Alien\n", "mug\n"]
TEXTS = ["toys\nmug", "one\ntwo\nthree three three", "one", "", "toys\nmug"]


@pytest.fixture
def encode(small_tokens):
    def encode(text: str, marked: bool = True) -> list[int]:
        ids = small_tokens.tokenizer.encode(text, add_special_tokens=False)
        return [*ids, small_tokens.marker_id] if marked else ids

    return encode


@pytest.fixture
def prm(small_teacher, small_tokens, tmp_path) -> Prm:
    """A PRM with random weights, saved and loaded."""
    small_teacher.save_pretrained(tmp_path / "teacher")
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "teacher", num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(tmp_path / "prm")
    small_tokens.tokenizer.save_pretrained(tmp_path / "prm")
    (tmp_path / "prm" / PRM_FILE).write_text(json.dumps({"marker_token": "->", "chat_template_kwargs": None}))
    return Prm.load(tmp_path / "prm")


def test_labels_by_hand(small_tokens, encode):
    ids = encode("toys\nmug")
    n_first = len(encode("toys\n", marked=False))
    assert state_positions(3, ids, small_tokens) == [2, 2 + n_first, 2 + len(ids) - 1]
    values = state_values(np.array([0.25, 0.5]), ids, 1.0, small_tokens)
    assert values == [0.25, 0.5, 1.0]
    example = labelled_example([7, 8, 9], ids, values, small_tokens)
    assert example["input_ids"] == [7, 8, 9, *ids]
    expected = [IGNORED] * (3 + len(ids))
    expected[2], expected[2 + n_first], expected[3 + len(ids) - 2] = values  # the marker, at the end, has no label
    assert example["labels"] == expected


def test_without_a_marker_the_outcome_is_nothing_and_without_steps_there_is_none(small_tokens, encode):
    assert state_values(np.array([0.25]), encode("toys", marked=False), 1.0, small_tokens) == [0.25, 0.0]
    assert state_values(np.array([0.25]), encode(""), 1.0, small_tokens) == [0.25]
    assert labelled_example([7, 8], encode(""), [0.25], small_tokens)["labels"] == [IGNORED, 0.25, IGNORED]
    unscored = labelled_example([7, 8], encode("toys"), [float("nan"), 0.5], small_tokens)["labels"]
    assert sum(label != IGNORED for label in unscored) == 1
    assert unscored[-2] == 0.5
    with pytest.raises(ValueError, match="zip"):
        labelled_example([7, 8], encode("toys"), [0.25], small_tokens)


def table(encode, small_tokens, **changes) -> pl.DataFrame:
    paths = [
        {
            "example_id": row.example_id,
            "sample_index": index,
            "policy": "sft",
            "ranker": "likelihood",
            "token_ids": encode(text),
            "completion": small_tokens.decode(encode(text)),
            "rank": rank,
            **changes,
        }
        for row in ROWS
        for index, (text, rank) in enumerate([("toys\nmug", 3), ("one", 1)])
    ]
    return table_of(paths)


def test_paths_are_labelled_with_their_gain_at_the_end(small_tokens, encode):
    asked = []

    def values(rows, completion_ids_B):
        asked.append([row.example_id for row in rows])
        return [np.array([0.1, 0.2][: len(small_tokens.step_ends(ids))]) for ids in completion_ids_B]

    found = label_paths(table(encode, small_tokens), ROWS, small_tokens, values)
    assert asked == [["u0:1", "u0:1", "u1:1", "u1:1"]]
    for labels, expected in zip(found["step_values"].to_list(), [[0.1, 0.2, 0.5], [0.1, 1.0]] * 2, strict=True):
        assert labels == pytest.approx(expected)
    contexts = [small_tokens.context_ids(row.prompt) for row in ROWS for _ in range(2)]
    assert found["prompt_ids"].to_list() == contexts


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sample_index": 0}, "of 4 paths 4 share example_id, sample_index, policy"),
        ({"rank": None}, "4 have no rank"),
        ({"ranker": "match"}, "ranked by match, expected likelihood"),
        ({"completion": "something else ->"}, "name the teacher that the paths were sampled from"),
    ],
)
def test_paths_that_cannot_be_labelled_are_refused(small_tokens, encode, changes, expected):
    with pytest.raises(ValueError, match=expected):
        label_paths(table(encode, small_tokens, **changes), ROWS, small_tokens, lambda *_: [])


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_scores_depend_neither_on_the_batch_nor_on_padding(prm, small_tokens, encode, padding, batch_size):
    prompts, completions = [small_tokens.context_ids(p) for p in PROMPTS], [encode(text) for text in TEXTS]
    found = Prm(prm.model, prm.tokens, batch_size).scores(prompts, completions, padding)
    assert [len(scores) for scores in found] == [3, 4, 2, 1, 3]
    for prompt, ids, scores in zip(prompts, completions, found, strict=True):
        # Alone, unpadded, and cut where the state ends: what comes later is not seen.
        ends = [0, *small_tokens.step_ends(ids)]
        with torch.no_grad():
            slow = [prm.model(torch.tensor([[*prompt, *ids[:end]]])).logits[0, -1, 0].sigmoid() for end in ends]
        np.testing.assert_allclose(scores, slow, atol=1e-5)
    assert len({round(float(score), 4) for scores in found for score in scores}) > 5


def test_scores_are_taken_in_eval_mode_and_the_mode_is_put_back(prm, small_tokens, encode):
    assert prm.model.dropout.p > 0
    expected = prm.scores([[5, 6]], [encode("toys\nmug")])[0]
    prm.model.train()
    np.testing.assert_array_equal(prm.scores([[5, 6]], [encode("toys\nmug")])[0], expected)
    assert prm.model.training
    assert prm.scores([], []) == []


def test_another_tokenizer_and_a_folder_without_a_prm_are_refused(prm, small_tokens, encode, tmp_path):
    prm.check_texts([encode("toys")], ["toys ->"])
    with pytest.raises(ValueError, match="which the PRM reads as 'toys ->'"):
        prm.check_texts([encode("toys")], ["mugs ->"])
    with pytest.raises(ValueError, match=r"no PRM at .*teacher: expected a folder that recipes/train_prm.py saved"):
        Prm.load(tmp_path / "teacher")


def test_padding_by_hand():
    ids, mask = padded([[5], [6, 7]], 0, "left")
    assert (ids.tolist(), mask.tolist()) == ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    ids, mask = padded([[5], [6, 7]], 0)
    assert (ids.tolist(), mask.tolist()) == ([[5, 0], [6, 7]], [[1, 0], [1, 1]])
