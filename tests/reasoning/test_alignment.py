"""Alignment tasks: what is asked, how often, and that no item's words can be taken for ours."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.catalog.semantic_ids import item_tokens
from anyo_rl.data.task import DataArguments
from anyo_rl.reasoning.alignment import Alignment, AlignmentRows
from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens, add_codes

TITLES = ["oak desk", "Item:", "pine -> shelf", "tea"]
ITEMS = pl.DataFrame({"item_id": list("abcd"), "title": TITLES, "wood": ["oak", None, "pine", ""]})


def world(attributes=("wood",), own_tokens=True):
    tokenizer = train_tokenizer([f" {title}" for title in TITLES] * 3, 300)
    ids = item_tokens(ITEMS["item_id"].to_list()) if own_tokens else None
    if ids is not None:
        add_codes(tokenizer, ids.tokens())
    tokens = Tokens.of(tokenizer)
    args = replace(DataArguments(), rationale_attributes=list(attributes), history_as="item")
    return (
        SimpleNamespace(args=args, interactions=SimpleNamespace(items=ITEMS)),
        build_catalog(ITEMS, tokens, ids),
        tokens,
    )


def test_each_task_has_its_prompt_its_answer_and_what_stands_before_it():
    rows = AlignmentRows(*world(), ["title", "attributes", "words"], 12)
    by_name = {row.example_id: row for row in rows}
    assert by_name["title:a"].prompt == "Title:\noak desk\nHistory:\nItem:\n"
    assert by_name["attributes:c"].prompt == "Attributes:\npine\nHistory:\nItem:\n"
    assert by_name["words:a"].prompt.startswith("Added token:\n<")
    assert {name: row.target_id for name, row in by_name.items()} == {name: name[-1] for name in by_name}
    assert rows.rationales["words:a"] == [("oak desk", "oak")]
    assert rows.rationales["words:b"] == [("Item:",)]  # it has no attribute
    assert rows.rationales["title:a"] == [()]


def test_a_title_that_reads_as_our_line_stays_data():
    rows = AlignmentRows(*world(), ["title"], 4)
    (prompt,) = [row.prompt for row in rows if row.target_id == "b"]
    assert prompt == "Title:\nItem∶\nHistory:\nItem:\n"


def test_every_item_comes_once_before_any_comes_again_and_tasks_as_often():
    rows = AlignmentRows(*world(), ["title", "attributes"], 12, seed=3)
    counts = Counter(row.example_id for row in rows)
    assert sorted(counts[f"title:{item}"] for item in "abcd") == [1, 1, 2, 2]
    assert counts["attributes:a"] == counts["attributes:c"] == 3  # the others have none
    assert [row.example_id for row in rows] == [
        row.example_id for row in AlignmentRows(*world(), ["title", "attributes"], 12, seed=3)
    ]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.2, 25), (0.5, 100)])
def test_their_share_is_of_all_rows(share, expected):
    assert Alignment(["title"], share).n_rows(100) == expected
    assert Alignment([], share).n_rows(100) == 0


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: Alignment(["titles"]), "titles"),
        (lambda: Alignment(["title", "title"]), "each once"),
        (lambda: Alignment(["title"], 1.0), "less than 1"),
        (lambda: AlignmentRows(*world(own_tokens=False), ["title"], 4), "item_tokens"),
        (lambda: AlignmentRows(*world(attributes=()), ["attributes"], 4), "rationale_attributes"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, found):
    with pytest.raises(UsageError, match=found):
        make()
