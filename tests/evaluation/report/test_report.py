import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from anyo_rl.evaluation.report import page as report
from anyo_rl.evaluation.report import paths as report_paths
from anyo_rl.evaluation.report import rounds as report_rounds
from anyo_rl.evaluation.report.page import write_report
from anyo_rl.evaluation.report.plots import rank_counts, running_mean
from anyo_rl.evaluation.summary import Summary

NASTY = "</script><script>alert(1)</script><!-- & \u2028 🎉 \"q\" 'a' {{ 7 * 7 }} $x$"


def path_row(example, sample, policy, rank, title="Brass Kettle", **changes):
    row = {
        "example_id": example, "sample_index": sample, "policy": policy, "split": "test", "user_id": "u" + example,
        "history": ["Fern", title], "prompt": "p", "completion": "one\ntwo -> x", "token_ids": [1, 2],
        "token_log_probs": [-0.1, -2.0], "steps": ["one", title], "item_id": "i1", "item_title": title,
        "target_id": "i1", "target_title": title, "rank": rank, "ranker": "likelihood", "cap": None,
        "rewards": json.dumps({"ndcg": 0.5, "mine": None}), "step_values": [0.1, float("nan"), 0.3],
        "finish_reason": "stop", "model": "tiny", "seed": 0,
    }  # fmt: skip
    return row | changes


def write_paths(folder, rows, name="a.parquet"):
    (folder / "paths").mkdir(exist_ok=True)
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(folder / "paths" / name)


def value(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 50}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run folder with everything, and with text meant to break out of the page wherever text can be."""
    folder = tmp_path_factory.mktemp("runs") / "full & <b>run"
    folder.mkdir()
    stages = {
        "sft": {"greedy": {"ndcg@10": value(0.1), "hr@10": value(0.2)}},
        "grpo": {"greedy": {"ndcg@10": value(0.2)}, "mixture": {"ndcg@10": value(0.22)}},
        "direct": {"plain": {"ndcg@10": value(0.12)}},
        "oracle": {"plain": {"ndcg@10": value(0.4)}},
        "<img src=x onerror=alert(1)>": {"plain": {"ndcg@10": value(0.05)}},
    }
    evaluation = {
        "dataset": NASTY, "split": "test", "mask_history": True, "n_users": 50, "n_items": 504, "stages": stages,
        "differences": {"grpo-sft": {"mixture": {"ndcg@10": value(0.12)}}},
        "slices": {"grpo": {"mixture": {"cold_item=true": {"n": 7, "ndcg@10": value(0.02)}, NASTY: {}}}},
        "true_intent": {"sft": 0.41, "grpo": 0.55},
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    metrics = [{"stage": "sft", "step": s, "loss": 1 / (s + 1), "validation_ndcg@10": 0.1} for s in range(5)]
    metrics += [
        {"stage": "grpo", "step": s, "reward": 0.3 + s / 100, "entropy": 1.0, "completions/clipped_ratio": 0.0,
         "guard/flat_groups": 0.1, "parsed_share": 0.9, "validation_ndcg@10": 0.2} for s in range(30)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics) + '{"stage": "gr')
    (folder / "config.yaml").write_text(f"note: {NASTY}\npasswd: sentinel\n")
    (folder / "versions.json").write_text('{"trl": "1.16.0"}')
    rows = [
        path_row(str(example), 0, policy, 1 + (7 * example + place) % 60, title=NASTY)
        for example in range(30)
        for place, policy in enumerate(("sft", "grpo"))
    ]
    write_paths(folder, rows)
    return write_report(folder).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects the elements as a browser's parser would see them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.ids, self.script_texts, self.attributes, self._in = [], [], [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        self.ids += [found for name, found in attrs if name == "id"]
        if tag == "script":
            self._in = ""

    def handle_data(self, data):
        if self._in is not None:
            self._in += data

    def handle_endtag(self, tag):
        if tag == "script":
            self.script_texts.append(self._in)
            self._in = None


def test_the_settings_are_shown_without_secrets(full):
    assert "passwd: &lt;redacted&gt;" in full
    assert "sentinel" not in full


def test_all_sections_and_plots_are_there(full):
    page = Page(full)
    sections = ["results", "plots-training", "plots-results", "paths", "guard-rails", "slices", "how"]
    assert [name for name in page.ids if name in sections] == sections
    for title in ("NDCG@10 by stage", "Share of the oracle", "Rank of the target", "Stated intents that are true",
                  "Reward over steps", "Validation NDCG@10", "Entropy", "Groups without spread"):  # fmt: skip
        assert title in full
    assert page.tags.count("svg") == 5 + 4
    assert "oracle 0.400" in full  # a line, and no row
    assert 'class="empty"' not in full.replace('<noscript><p class="empty">', "")
    assert "1 of 36 lines of metrics.jsonl could not be read" in full
    assert "+120.0%" in full  # 0.22 over 0.1


def test_ids_are_unique(full):
    ids = Page(full).ids
    assert len(ids) == len(set(ids))


def test_text_from_the_data_never_becomes_markup(full):
    page = Page(full)
    assert page.tags.count("script") == 2
    assert len(page.script_texts) == 2
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert" not in full
    assert "&lt;script&gt;alert(1)" in full  # in the facts, escaped
    assert "7 * 7" in full  # never evaluated
    embedded = page.script_texts[0]
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert embedded.isascii()
    data = json.loads(embedded)
    titles = {example["target"] for example in data["examples"]}
    assert titles == {" ".join(NASTY.split())}  # nothing lost (a line separator is white space)


def test_the_script_inserts_text_only(full):
    script = Page(full).script_texts[1]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest"):
        assert way not in script


def test_the_script_finds_all_that_it_looks_for(full):
    page = Page(full)
    script = page.script_texts[1]
    (names,) = re.findall(r"= \[([^\]]+)\]\.map\(byId\)", script)
    wanted = {name.strip(' "') for name in names.split(",")}
    wanted |= set(re.findall(r'(?:byId|getElementById)\("([a-z-]+)"\)', script))
    assert wanted == {"paths-data", "browser", "list", "detail", "search", "stage", "change", "count"}
    assert wanted <= set(page.ids)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_reader_can_go_through_the_paths(full, tmp_path):
    """The page's own script on a page of stubs: what is shown at first, by keys, by a choice, and by a search."""
    data, script = Page(full).script_texts
    (tmp_path / "data.json").write_text(data, encoding="utf-8")
    (tmp_path / "script.js").write_text(script, encoding="utf-8")
    program = Path(__file__).with_name("browser.js")
    command = ["node", str(program), str(tmp_path / "script.js"), str(tmp_path / "data.json")]
    seen = json.loads(subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout)
    examples = json.loads(data)["examples"]
    n = len(examples)
    assert n > 1
    assert seen["hidden"] is False
    assert (seen["start"]["count"], seen["start"]["shown"]) == (f"{n} of {n} examples", n)
    assert [seen[when]["selected"] for when in ("start", "next", "back")] == [0, 1, 0]
    assert seen["start"]["detail"] == seen["back"]["detail"] != seen["next"]["detail"]
    assert examples[0]["target"] in seen["start"]["detail"]

    def change(example):
        before, after = (
            next((path["rank"] for path in example["paths"] if path["policy"] == policy), None)
            for policy in (json.loads(data)["before"], json.loads(data)["after"])
        )
        return "" if None in (before, after) else "better" if after < before else "worse" if after > before else "same"

    for kind in ("better", "worse"):
        assert seen[kind]["count"] == f"{sum(change(one) == kind for one in examples)} of {n} examples"
    assert seen["better"]["count"] != seen["worse"]["count"], "the same for both: the choice shows nothing"
    assert seen["nothing"]["count"] == f"0 of {n} examples"
    assert seen["nothing"]["list"] == "Nothing matches."


def test_nothing_is_asked_from_outside(full):
    assert not re.search(r"https?://", full)
    assert "@import" not in full
    page = Page(full)
    assert not [found for found in page.attributes if found[1] in ("src", "srcset", "action", "data")]
    assert "link" not in page.tags
    for _, name, address in page.attributes:
        if name.endswith("href"):
            assert address.startswith("#")
    assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)\)", full))


def test_policy_allows_only_the_page_s_own_script(full):
    import base64
    import hashlib

    policy = next(
        found for tag, name, found in Page(full).attributes if tag == "meta" and "default-src" in (found or "")
    )
    digest = base64.b64encode(hashlib.sha256(Page(full).script_texts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_an_empty_run_folder_is_a_report_of_short_sentences(tmp_path):
    html = write_report(tmp_path).read_text(encoding="utf-8")
    for sentence in ("No evaluation was found", "No metrics were logged", "no table of paths", "No slices"):
        assert sentence in html
    assert "<svg" not in html


@pytest.mark.parametrize("evaluation", ["{}", "[]", "{broken", '{"stages": {"sft": {"greedy": {"ndcg@10": NaN}}}}'])
def test_broken_files_are_noted_not_raised(tmp_path, evaluation):
    (tmp_path / "evaluation.json").write_text(evaluation)
    (tmp_path / "metrics.jsonl").write_text('\n[1]\n{"step": 1}\n{"stage": "grpo", "step": 1, "reward": NaN}\n')
    (tmp_path / "paths").mkdir()
    (tmp_path / "paths" / "x.parquet").write_bytes(b"not parquet")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "1 shards of paths could not be read: x.parquet" in html
    assert ("evaluation.json could not be read" in html) == (evaluation in ("[]", "{broken"))


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(NotADirectoryError, match="no run folder"):
        write_report(tmp_path / "nothing")


def test_one_stage_one_point_and_columns_that_are_null(tmp_path):
    (tmp_path / "evaluation.json").write_text('{"stages": {"sft": {"greedy": {"ndcg@10": 0.0}}}}')
    (tmp_path / "metrics.jsonl").write_text('{"stage": "grpo", "step": 1, "reward": 0.5}\n')
    nothing = dict.fromkeys(("history", "steps", "token_ids", "token_log_probs", "item_id", "item_title", "rewards"))
    write_paths(tmp_path, [path_row("1", 0, "sft", None, step_values=None, target_title=None, **nothing)])
    assert "Reward over steps" in write_report(tmp_path).read_text(encoding="utf-8")


def test_paths_chosen_are_the_biggest_changes_and_a_sample(tmp_path):
    rows = [path_row(f"{n:03}", 0, policy, 20) for n in range(100) for policy in ("sft", "grpo")]
    rows += [path_row("gain", 0, "sft", 400), path_row("gain", 0, "grpo", 1)]
    rows += [path_row("loss", 0, "sft", 1), path_row("loss", 0, "grpo", 400)]
    write_paths(tmp_path, rows)
    keys, files, _ = report_paths.read_keys(tmp_path)
    chosen = report_paths.choose_paths(keys, limit=20)
    assert chosen.height == 20
    assert chosen["example_id"].n_unique() == 10
    assert chosen["example_id"].to_list()[:4] == ["gain", "gain", "loss", "loss"]
    assert chosen["why"].to_list()[4:] == ["sample"] * 16
    assert chosen.equals(report_paths.choose_paths(keys, limit=20))
    assert not chosen.equals(report_paths.choose_paths(keys, limit=20, seed=1))
    examples = report_paths.load_examples(tmp_path, keys, files, limit=20)
    assert [path["rank"] for path in examples[0]["paths"]] == [1, 400]
    assert {path["policy"] for path in examples[0]["paths"]} == {"grpo", "sft"}


def test_few_examples_leave_room_for_more_samples(tmp_path):
    write_paths(tmp_path, [path_row("1", n, policy, n + 1) for n in range(8) for policy in ("sft", "grpo")])
    keys, _, _ = report_paths.read_keys(tmp_path)
    chosen = report_paths.choose_paths(keys, limit=6)
    assert sorted(chosen["sample_index"].to_list()) == [0, 0, 1, 1, 2, 2]
    assert report_paths.choose_paths(keys.clear()).is_empty()


def test_a_path_written_twice_counts_once_and_the_split_is_kept(tmp_path):
    write_paths(tmp_path, [path_row("1", 0, "sft", 5), path_row("2", 0, "sft", 9, split="train")], "a.parquet")
    write_paths(tmp_path, [path_row("1", 0, "sft", 3)], "b.parquet")
    keys, files, _ = report_paths.read_keys(tmp_path, "test")
    assert keys["rank"].to_list() == [3]
    assert report_paths.load_examples(tmp_path, keys, files)[0]["paths"][0]["rank"] == 3
    assert report_paths.read_keys(tmp_path, "validation")[0].height == 2


def test_rewards_may_be_a_struct_and_long_text_is_cut(tmp_path):
    write_paths(tmp_path, [path_row("1", 0, "sft", 2, title="x" * 10_000, rewards={"ndcg": 0.5, "mine": None})])
    keys, files, _ = report_paths.read_keys(tmp_path)
    example = report_paths.load_examples(tmp_path, keys, files)[0]
    assert example["paths"][0]["rewards"] == {"ndcg": 0.5, "mine": None}
    assert len(example["target"]) == report_paths.MAX_TEXT
    assert example["target"].endswith("…")


def test_token_texts_keep_split_characters_together():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["a b"], trainers.BpeTrainer(vocab_size=256, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    ids = tokenizer.encode("a 🎉b").ids
    texts = report_paths.token_texts(tokenizer, ids)
    assert texts == ["a", " ", "", "", "", "🎉", "b"]


def test_rank_bins_double():
    # Bins [1, 2), [2, 4), [4, 8) and beyond.
    assert rank_counts(np.array([1, 1, 2, 3, 4, 7, 8, 500]), 4).tolist() == [0.25, 0.25, 0.25, 0.25]
    assert rank_counts(np.array([], dtype=int), 2).tolist() == [0.0, 0.0]


def test_running_mean_does_not_sag_at_the_ends():
    assert running_mean(np.array([1.0, 2.0, 3.0, 4.0]), 3).tolist() == [1.5, 2.0, 3.0, 3.5]
    assert running_mean(np.ones(10), 5).tolist() == [1.0] * 10


def test_safe_json_writes_numbers_that_are_not_numbers_as_null():
    assert json.loads(report_paths.safe_json([math.nan, math.inf, 1.0, "a"])) == [None, None, 1.0, "a"]


def test_greedy_and_mixture_paths_of_one_index_are_two_paths_and_greedy_comes_first(tmp_path):
    for policy, greedy, mixture in (("sft", 50, 1), ("grpo", 2, 60)):
        write_paths(tmp_path, [path_row("1", 0, policy, greedy)], f"{policy}.greedy.parquet")
        write_paths(tmp_path, [path_row("1", n, policy, mixture) for n in range(2)], f"{policy}.mixture.parquet")
    keys, files, _ = report_paths.read_keys(tmp_path)
    assert keys.height == 6
    example = report_paths.load_examples(tmp_path, keys, files)[0]
    assert example["why"] == "gain"
    shown = [(path["policy"], path["sample"], path["rank"]) for path in example["paths"]]
    assert shown[:2] == [("grpo", "greedy", 2), ("sft", "greedy", 50)]
    assert sorted(shown[2:]) == [
        ("grpo", "sample 0", 60), ("grpo", "sample 1", 60), ("sft", "sample 0", 1), ("sft", "sample 1", 1)
    ]  # fmt: skip
    (tmp_path / "evaluation.json").write_text('{"split": "test (leave one out)"}')
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Share of greedy paths" in html
    assert "6 of 6 paths" in html


def test_slices_show_both_metrics_with_their_intervals():
    numbers = {"n": 7, "ndcg@10": {"mean": 0.5, "low": 0.25, "high": 0.75}, "hr@10": {"mean": 1.0, "low": None}}
    found = report.slice_rows(Summary.from_json({"slices": {"grpo": {"mixture": {"cold_item=true": numbers}}}}))
    assert found == [["grpo", "mixture", "cold item: true", "7", "0.5000 [0.2500, 0.7500]", "1.0000"]]


def test_the_headline_says_how_many_reasonings_state_an_intent():
    stages = {stage: {"greedy": {"ndcg@10": value(0.1)}} for stage in ("sft", "grpo")}
    evaluation = {"stages": stages, "true_intent": {"sft": 0.4, "grpo": 0.5}}
    (found,) = [h for h in report.headlines(Summary.from_json(evaluation)) if h["label"].startswith("Stated")]
    assert (found["value"], found["note"]) == ("50.0%", "40.0% after sft")
    evaluation["stated_intent"] = {"grpo": 0.9}
    (found,) = [h for h in report.headlines(Summary.from_json(evaluation)) if "Stated" in h["label"]]
    assert found["note"] == "40.0% after sft; 90.0% of the reasonings state one"


def test_a_run_without_grpo_shows_what_it_has_instead(tmp_path):
    stages = {stage: {"greedy": {"ndcg@10": value(0.1)}} for stage in ("sft", "star", "dpo")}
    assert report.headlines(Summary.from_json({"stages": stages}))[0]["label"] == "NDCG@10, dpo (greedy)"
    del stages["dpo"]
    assert report.headlines(Summary.from_json({"stages": stages}))[0]["label"] == "NDCG@10, star (greedy)"
    write_paths(tmp_path, [path_row("1", 0, policy, rank) for policy, rank in (("sft", 9), ("star", 1))])
    keys, _, _ = report_paths.read_keys(tmp_path)
    assert report_paths.after(keys) == "star"
    assert set(report_paths.choose_paths(keys)["why"]) == {"gain"}
    (tmp_path / "evaluation.json").write_text(json.dumps({"stages": stages}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert '<tr class="accent"><th scope="row">star</th>' in page
    assert '<tr><th scope="row">sft</th>' in page


ROUNDS = [
    {"round": 0, "ndcg@10": 0.3, "low": 0.2, "high": 0.4},
    {
        "round": 1, "ndcg@10": 0.45, "low": 0.35, "high": 0.55, "diversity": 0.625,
        "sampled": {"sampled": 1600, "kept": 400, "examples": 400, "examples_kept": 200},
        "hinted": {"sampled": 400, "kept": 100, "examples": 200, "examples_kept": 100},
    },
]  # fmt: skip


def test_warnings_and_correlations_of_rewards_are_shown(tmp_path):
    rows = [{"stage": "grpo", "step": s, "reward": 0.1 * s, "rewards/corr/ndcg~mine": 0.5} for s in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "warnings.txt").write_text("spread step 5: nothing to learn from <b>95%</b>\n")
    page = write_report(tmp_path).read_text()
    assert "Warning while training: step 5: nothing to learn from &lt;b&gt;95%&lt;/b&gt;." in page
    assert "ndcg and mine" in page


def test_rounds_show_what_they_kept(tmp_path):
    (tmp_path / "star").mkdir()
    (tmp_path / "star" / "rounds.json").write_text(json.dumps(ROUNDS))
    assert report_rounds.round_cells(report_rounds.read_rounds(tmp_path)) == [
        ["0", "0.3000 [0.2000, 0.4000]", "–", "–", "–", "–", "–", "–"],
        ["1", "0.4500 [0.3500, 0.5500]", "1,600", "400 (25.0%)", "400", "100 (25.0%)", "75.0%", "62.5%"],
    ]
    html = write_report(tmp_path).read_text()
    assert "Rounds of STaR" in html
    assert "Acceptance and diversity by round" in html
    without = [{name: value for name, value in row.items() if name != "hinted"} for row in ROUNDS]
    (tmp_path / "star" / "rounds.json").write_text(json.dumps(without))
    found = report_rounds.read_rounds(tmp_path)
    assert report_rounds.round_cells(found)[1][4:7] == ["–", "–", "50.0%"]  # rejection sampling has no hints
    assert "kept with a hint" not in write_report(tmp_path).read_text()


def test_rounds_are_written_as_they_were_read_and_lack_what_is_not_told():
    rows = [{"round": 0, "ndcg@10": 0.3, "low": None, "high": None}, {**ROUNDS[1], "diversity": None}]
    rounds = [report_rounds.Round.from_json(row) for row in rows]
    assert [each.as_json() for each in rounds] == rows
    fused = {"round": 1, "fused_ndcg@10": 0.4, "low": 0.3, "high": 0.5}
    assert report_rounds.Round.from_json(fused).as_json() == fused
    assert report_rounds.round_header([report_rounds.Round.from_json(fused)])[1] == "NDCG@10 with evidence"
    assert report_rounds.round_header(rounds)[1] == "NDCG@10"
    bare = report_rounds.Round.from_json({"round": 2, "sampled": {"sampled": 4}})
    assert report_rounds.round_cells([bare]) == [["2", *["–"] * 7]]
    assert report_rounds.round_plots([bare]) == []


@pytest.mark.parametrize("text", ['[{"round"', "{}", "[1]"])
def test_broken_rounds_are_noted(tmp_path, text):
    (tmp_path / "star").mkdir()
    (tmp_path / "star" / "rounds.json").write_text(text)
    html = write_report(tmp_path).read_text()
    assert "star/rounds.json could not be read" in html
    assert "Rounds of STaR" not in html
