"""What prompts show of an item: its title, its added tokens, or both."""

from dataclasses import replace

import polars as pl
import pytest

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.semantic_ids import SemanticIds, item_tokens, published_ids
from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.prompts import Shown, fit_history, render_prompt
from anyo_rl.reasoning.rows import Rows, make_prompt, sample_texts
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.checks import check_history
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens, add_codes

TASK = load_task(DataArguments(toy_users=30, toy_categories=5))
ITEMS = TASK.interactions.items


def opened(kind: str, items: pl.DataFrame = ITEMS) -> tuple[Catalog, Tokens, SemanticIds]:
    ids = item_tokens(items["item_id"].to_list())
    if kind == "semantic_id":
        codes = [f"<a_{row // 100}><b_{row // 10 % 10}><c_{row % 10}>" for row in range(len(items))]
        ids = published_ids(items.with_columns(sid=pl.Series(codes)), "sid")
    tokenizer = train_tokenizer(sample_texts(TASK), 400)
    add_codes(tokenizer, ids.tokens())
    tokens = Tokens.of(tokenizer)
    return build_catalog(items, tokens, ids), tokens, ids


def shown_as(how: str, **changed):
    return replace(TASK, args=replace(TASK.args, history_as=how, **changed))


@pytest.mark.parametrize("kind", ["item", "semantic_id"])
def test_a_history_of_added_tokens_is_read_as_these(kind):
    catalog, tokens, ids = opened(kind)
    history = list(catalog.item_ids[7:17])
    codes = [tokens.code_ids(ids.codes[item])[:-1] for item in history]
    added = set(tokens.code_ids(ids.tokens())[:-1])
    prompt = make_prompt(shown_as("item"), history, catalog, tokens)
    lines = "".join("".join(ids.codes[item]) + "\n" for item in history)
    assert prompt == f"History:\n{lines}Next:\n"
    read = tokens.context_ids(prompt)
    assert [token for token in read if token in added] == [token for row in codes for token in row]
    assert len(read) <= 64
    both = make_prompt(shown_as("both", history_tokens=999), history, catalog, tokens)
    titles = [catalog.titles[catalog.index[item]] for item in history]
    assert both.split("\n")[1:11] == [f"{t} {''.join(ids.codes[i])}" for t, i in zip(titles, history, strict=True)]
    assert [t for t in tokens.context_ids(both) if t in added] == [token for row in codes for token in row]
    # A chat escapes tags in titles; the tokens of items are no tags.
    chat = make_prompt(shown_as("both", prompt_style="chat"), history[:1], catalog, tokens, hint=history[1])
    assert "".join(ids.codes[history[0]]) in chat[-1]["content"]
    assert f"<chosen>\n{titles[1]} {''.join(ids.codes[history[1]])}\n</chosen>" in chat[-1]["content"]


def test_rows_show_what_the_task_says():
    catalog, tokens, _ = opened("item")
    task = shown_as("item", history_tokens=6)
    row = Rows(task, task.places("train"), catalog, tokens).hinted()[0]
    newest = [f"<i_{catalog.index[item]}>" for item in row.history[-3:]]
    assert row.prompt.split("\n") == ["History:", *newest, "Next:", ""]
    assert f"\nChosen: <i_{catalog.index[row.target_id]}>\n" in row.hinted_prompt


@pytest.mark.parametrize("style", ["text", "chat"])
@pytest.mark.parametrize("how", ["title", "both"])
def test_a_title_that_spells_a_token_of_an_item_is_no_such_token(how, style):
    hostile = ["mug <i_3>", "<i_3>", "lamp <i_<i_3>4>", "cup <i_99999>", "tea ＜i_3＞ oak", "<i_3"]
    items = ITEMS.head(10).with_columns(title=pl.Series([*hostile, *(f"plain {n}" for n in range(10 - len(hostile)))]))
    catalog, tokens, ids = opened("item", items)
    added = set(tokens.code_ids(ids.tokens())[:-1])
    history = list(catalog.item_ids[: len(hostile)])
    prompt = make_prompt(shown_as(how, prompt_style=style), history, catalog, tokens, hint=history[0])
    read = [prompt] if style == "text" else [message["content"] for message in prompt]
    found = [token for text in read for token in tokens.tokenizer.encode(text) if token in added]
    own = [tokens.code_ids(ids.codes[item])[0] for item in [*history, history[0]]]
    assert found == ([] if how == "title" else own)
    assert catalog.titles[3] == "cup <i_99999>"  # which is no token here


def test_tokens_of_items_are_counted_and_never_cut():
    def words(lines):
        return [len(line.split()) for line in lines]

    items = [Shown("a b", "<i_1>"), Shown("c d e", "<i_2>")]
    assert fit_history(items, words, 7) == items
    assert fit_history(items, words, 6) == items[1:]
    assert fit_history(items, words, 3) == [Shown("c d…", "<i_2>")]
    assert render_prompt(fit_history(items, words, 3)) == "History:\nc d… <i_2>\nNext:\n"
    assert render_prompt([Shown("Next:", "<i_2>"), Shown("", "<i_1>")]) == "History:\nNext∶ <i_2>\n<i_1>\nNext:\n"
    with pytest.raises(DataError, match="does not hold the first character of '<i_2>': raise history_tokens"):
        fit_history([Shown("", "<i_2>")], words, 0)


def test_titles_alone_leave_nothing_else_to_show():
    catalog = build_catalog(ITEMS, Tokens.of(train_tokenizer(sample_texts(TASK), 400)))
    for how in ("item", "both"):
        with pytest.raises(UsageError, match=f"history_as is {how} and item_tokens is title"):
            check_history(replace(TASK.args, history_as=how), TeacherArguments())
        check_history(replace(TASK.args, history_as=how), TeacherArguments(item_tokens="item"))
        with pytest.raises(UsageError, match="set history_as to title"):
            make_prompt(shown_as(how), list(catalog.item_ids[:2]), catalog, Tokens.of(train_tokenizer(["a"], 300)))
    check_history(TASK.args, TeacherArguments())
