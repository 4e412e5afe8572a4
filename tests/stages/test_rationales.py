"""Rationales asked of a server: what is written down, each answer once, and what a second start asks."""

import json
from collections import Counter

import polars as pl
import pytest
from datasets import load_dataset

from anyo_rl.data.rationales import read_rationales
from anyo_rl.data.schema import DataError
from anyo_rl.llm.server import Server, ServerError
from anyo_rl.reasoning.rationales.filters import FilterArguments
from anyo_rl.reasoning.rationales.prompts import load_prompt
from anyo_rl.reasoning.rationales.questions import make_questions
from anyo_rl.reasoning.rationales.titles import Titles
from anyo_rl.sampling.paths import PATHS_SCHEMA
from anyo_rl.stages.rationales import generate

NAMES = ["Green Tea", "Mug", "Pot", "Cup", "Jar", "Lid"]
TITLES = Titles(pl.DataFrame({"item_id": [f"i{n}" for n in range(6)], "title": NAMES}))
N = 4


@pytest.fixture
def questions(repo_root):
    examples = pl.DataFrame(
        {
            "example_id": [f"u{row}:2" for row in range(N)],
            "user_id": [f"u{row}" for row in range(N)],
            "history": [["i0", "i1"]] * N,
            "target_id": [f"i{2 + row}" for row in range(N)],
            "split": ["train"] * N,
        }
    )
    return make_questions(examples, TITLES, load_prompt(repo_root / "recipes/prompts/post_hoc.yaml", "post_hoc"))


def target_of(prompt):
    return prompt.split("<target>\n")[1].split("\n")[0]


def say(prompt, seed):
    """One of each, by seed: good, the same again for all, wrong, a leak."""
    target = target_of(prompt)
    return {
        0: f"likes warm drinks\nneeds something for {target[::-1].lower()} now, and more -> {target}",
        1: f"likes warm drinks of any kind\nneeds something now -> {target}",
        2: "likes warm drinks of any kind\nneeds something new now -> Green Tea",
        3: f"likes warm drinks of any kind\nneeds a new {target} now -> {target}",
    }[seed]


def run(questions, fake, folder, n_samples=4, style="text", filters=None, **settings):
    server = Server(fake.url, "m", **{"seed": 0, "concurrency": 2, "first_wait_s": 0.0} | settings)
    return generate(questions, n_samples, server, TITLES, filters or FilterArguments(), folder, style)


def read(folder):
    return pl.read_parquet(folder / "paths.parquet")


def test_tables_and_report_by_hand(fake_server, questions, tmp_path):
    fake_server.say = say
    report = run(questions, fake_server, tmp_path, prompt_price=1.0, completion_price=2.0)
    none = dict.fromkeys(["truncated", "unparsed", "copy", "short", "long", "failed", "left"], 0)
    assert report.counts == {"kept": 5, "wrong_item": 4, "leak": 4, "duplicate": 3, **none}
    assert report.requests == 16
    assert (report.examples, report.examples_with_rationale, report.stopped) == (4, 4, None)
    assert (report.prompt_tokens, report.completion_tokens) == (160, 80)
    assert report.money == pytest.approx(320e-6)
    assert json.loads((tmp_path / "rationales.json").read_text()) == report.as_json()
    table = (tmp_path / "rationales.md").read_text()
    assert "| kept | 5 | 31.2% |" in table
    assert "| all | 16 | 100.0% |" in table

    paths = read(tmp_path)
    assert paths.schema == PATHS_SCHEMA
    assert paths.select("example_id", "sample_index").rows() == [(f"u{n}:2", s) for n in range(N) for s in range(4)]
    first, wrong = paths.row(0, named=True), paths.row(2, named=True)
    assert first["steps"] == ["likes warm drinks", "needs something for top now, and more"]
    assert (first["item_id"], first["target_id"], first["target_title"]) == ("i2", "i2", "Pot")
    assert (first["history"], first["seed"], first["model"], first["split"]) == (["Green Tea", "Mug"], 0, "m", "train")
    assert json.loads(first["rewards"]) == {"kept": 1.0}
    assert (wrong["item_id"], wrong["item_title"], wrong["seed"]) == ("i0", "Green Tea", 2)
    assert json.loads(wrong["rewards"]) == {"kept": 0.0, "wrong_item": 0.0}
    assert {name for name in PATHS_SCHEMA if paths[name].null_count() == len(paths)} == {
        *("token_ids", "token_log_probs", "rank", "ranker", "cap", "step_values"),
    }


@pytest.mark.parametrize("style", ["text", "chat"])
def test_the_data_set_is_one_of_trl(fake_server, questions, tmp_path, style):
    fake_server.say = say
    run(questions, fake_server, tmp_path / "run", style=style)
    dataset = load_dataset(str(tmp_path / "run" / "rationales"), cache_dir=str(tmp_path / "cache"))["train"]
    assert dataset.column_names == ["prompt", "completion", "example_id", "sample_index", "target_id"]
    assert [(row["example_id"], row["sample_index"]) for row in dataset] == [
        *[("u0:2", 0), ("u0:2", 1), ("u1:2", 0), ("u2:2", 0), ("u3:2", 0)],
    ]
    prompt, completion = dataset[0]["prompt"], dataset[0]["completion"]
    written = "likes warm drinks\nneeds something for top now, and more -> Pot"
    if style == "text":
        assert (prompt, completion) == ("History:\nGreen Tea\nMug\nNext:\n", written)
    else:
        assert [message["role"] for message in prompt] == ["system", "user"]
        assert completion == [{"role": "assistant", "content": written}]


def test_what_has_arrived_is_not_asked_again(fake_server, questions, tmp_path):
    fake_server.say = say
    before = run(questions[:2], fake_server, tmp_path, n_samples=2)
    assert before.counts["kept"] == 3
    assert len(fake_server.bodies) == 4
    # More examples and more samples ask for what is new, another filter or another place of the server for nothing.
    more = run(questions, fake_server, tmp_path)
    assert len(fake_server.bodies) == 16
    assert more.counts["kept"] == 5
    again = run(questions, fake_server, tmp_path, timeout_s=5.0, filters=FilterArguments(fewest_words=10))
    assert len(fake_server.bodies) == 16
    assert (again.this_start.asked, again.counts["short"]) == (0, 4)
    assert Counter(read(tmp_path)["example_id"]) == dict.fromkeys([f"u{n}:2" for n in range(N)], 4)


def test_failures_are_counted_and_asked_again(fake_server, questions, tmp_path):
    fake_server.say = say
    fake_server.plan = lambda key, number: 500 if target_of(key[0]) == "Pot" else "ok"
    report = run(questions, fake_server, tmp_path, n_samples=2, max_attempts=2)
    assert (report.counts["failed"], report.counts["left"]) == (2, 0)
    assert sum(report.counts.values()) == report.requests == 8
    assert report.this_start.failed == {"server_error": 2}
    assert set(read(tmp_path)["example_id"]) == {"u1:2", "u2:2", "u3:2"}
    fake_server.plan = lambda key, number: "ok"
    report = run(questions, fake_server, tmp_path, n_samples=2)
    assert (report.counts["failed"], report.this_start.asked) == (0, 2)
    assert len(read(tmp_path)) == 8


def test_a_budget_that_ends_leaves_tables_of_what_arrived(fake_server, questions, tmp_path):
    fake_server.say = say
    most = len(json.dumps(questions[0].prompt)) + 100
    settings = {"parameters": {"max_tokens": 50}, "concurrency": 1}
    report = run(questions, fake_server, tmp_path, max_tokens_in_all=most + 40, **settings)
    n = 16 - report.counts["left"]
    assert report.stopped == "budget"
    assert 0 < n == len(read(tmp_path)) == len(fake_server.bodies) < 16
    assert sum(report.counts.values()) == 16
    assert "Stopped: budget" in (tmp_path / "rationales.md").read_text()
    assert run(questions, fake_server, tmp_path, max_tokens_in_all=10**6, **settings).stopped is None
    assert len(read(tmp_path)) == len(fake_server.bodies) == 16


def test_an_error_of_the_server_leaves_tables_and_a_report(fake_server, questions, tmp_path):
    fake_server.say = say
    fake_server.plan = lambda key, number: 403 if target_of(key[0]) == "Lid" else "ok"
    with pytest.raises(ServerError, match="status 403"):
        run(questions, fake_server, tmp_path, concurrency=1)
    report = json.loads((tmp_path / "rationales.json").read_text())
    assert report["stopped"] == "error"
    assert "status 403" in report["error"]
    assert sum(report["counts"].values()) == 16
    assert (report["counts"]["left"], len(read(tmp_path))) == (4, 12)


def test_no_key_is_an_error_with_a_report(fake_server, questions, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ServerError, match="found no OPENAI_API_KEY"):
        run(questions, fake_server, tmp_path)
    report = json.loads((tmp_path / "rationales.json").read_text())
    assert (report["counts"]["left"], report["this_start"]) == (16, None)


def test_less_than_one_sample_is_refused(fake_server, questions, tmp_path):
    with pytest.raises(DataError, match="n_samples is 0"):
        run(questions, fake_server, tmp_path, n_samples=0)


@pytest.mark.parametrize("place", ["", "paths.parquet", "rationales", "rationales/train.parquet"])
@pytest.mark.parametrize("style", ["text", "chat"])
def test_rationales_are_read_back(fake_server, questions, tmp_path, place, style):
    fake_server.say = say
    run(questions, fake_server, tmp_path, style=style)
    targets = {f"u{n}:2": f"i{2 + n}" for n in range(5)}
    found = read_rationales(tmp_path / place, targets)
    assert [example for example, _ in found] == ["u0:2", "u0:2", "u1:2", "u2:2", "u3:2"]
    assert found[0][1] == ("likes warm drinks", "needs something for top now, and more")
    for wrong, message in (
        ({"u0:2": "i2"}, "3 of its 4 examples, as 'u1:2', are none of the 1 training examples"),
        ({**targets, "u3:2": "i0"}, "1 of its 4 examples have another target, as 'u3:2': 'i5' there and 'i0' here"),
    ):
        with pytest.raises(DataError, match=message):
            read_rationales(tmp_path / place, wrong)


def test_files_that_hold_no_rationales_are_refused(fake_server, questions, tmp_path):
    with pytest.raises(DataError, match=r"found no rationales at rationales_path .*nowhere"):
        read_rationales(tmp_path / "nowhere", {})
    (tmp_path / "x.parquet").write_text("x")
    with pytest.raises(DataError, match="can't be read as parquet"):
        read_rationales(tmp_path / "x.parquet", {})
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has the columns \['a'\]: expected example_id"):
        read_rationales(tmp_path / "a.parquet", {})
    run(questions, fake_server, tmp_path / "run")  # echoes: nothing is kept
    for place in ("", "rationales"):
        with pytest.raises(DataError, match="holds no rationale that was kept"):
            read_rationales(tmp_path / "run" / place, {})
