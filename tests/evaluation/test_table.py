import json

import pytest

from anyo_rl.evaluation.table import (
    console_table,
    finite,
    lift_percent,
    markdown_table,
    read_value,
    rows,
    split_difference,
    stage_value,
)


def value(mean, half=0.01, n=100):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


@pytest.fixture
def evaluation():
    return {
        "dataset": "toy", "split": "test", "mask_history": False, "n_users": 1500, "n_items": 504,
        "ranker": "likelihood", "seed": 3, "n_paths": 8,
        "stages": {
            "oracle": {"plain": {"ndcg@10": value(0.4)}},
            "mine": {"plain": {"ndcg@10": value(0.05)}},
            "direct": {"plain": {"ndcg@10": value(0.16)}},
            "grpo": {"mixture": {"ndcg@10": value(0.24)}, "greedy": {"ndcg@10": value(0.2), "hr@10": value(0.3),
                     "mrr": value(0.15), "coverage@10": 0.7}},
            "sft": {"greedy": {"ndcg@10": value(0.1)}},
        },
        "differences": {"grpo-sft": {"greedy": {"ndcg@10": value(0.1, 0.02)}},
                        "grpo-direct": {"mixture": {"ndcg@10": value(0.08, 0.09)}}},
    }  # fmt: skip


def test_rows_are_in_order_with_shares_of_the_oracle(evaluation):
    table = rows(evaluation)
    assert [(row.stage, row.mode) for row in table] == [
        ("sft", "greedy"), ("grpo", "greedy"), ("grpo", "mixture"), ("direct", "plain"), ("mine", "plain"),
        ("oracle", "plain"),
    ]  # fmt: skip
    assert [row.share_of_oracle for row in table] == pytest.approx([0.25, 0.5, 0.6, 0.4, 0.125, 1.0])


def test_stages_that_learned_from_ranks_stand_between_sft_and_direct():
    stages = {stage: {"greedy": {"ndcg@10": value(0.1)}} for stage in ("direct", "grpo", "dpo", "star", "sft")}
    assert [row.stage for row in rows({"stages": stages})] == ["sft", "star", "dpo", "grpo", "direct"]


def test_markdown_states_how_and_what(evaluation):
    text = markdown_table(evaluation)
    first = text.splitlines()[0]
    assert first == (
        "dataset: toy, split: test, users: 1,500, items: 504, ranker: likelihood, history masking: off, "
        "paths per mixture: 8, seed: 3"
    )
    assert "| Stage | Mode | HR@10 | NDCG@10 | MRR | Coverage@10 | Share of oracle |" in text
    assert "| grpo | greedy | 0.3000 | 0.2000 [0.1900, 0.2100] | 0.1500 | 0.7000 | 50.0% |" in text
    assert "| sft | greedy | – | 0.1000 [0.0900, 0.1100] | – | – | 25.0% |" in text
    assert "| grpo − sft | greedy | +0.1000 [+0.0800, +0.1200] | +100.0% | – | – |" in text
    # direct has one mode only, and is compared by it: 0.24 / 0.16 - 1.
    assert "| grpo − direct | mixture | +0.0800 [-0.0100, +0.1700] | +50.0% | – | – |" in text


def test_no_oracle_no_column(evaluation):
    del evaluation["stages"]["oracle"]
    assert "oracle" not in markdown_table(evaluation)


def test_every_row_of_a_table_has_the_same_number_of_cells_whatever_the_names(evaluation):
    evaluation["stages"]["a|b\nc"] = {"x|y": {"ndcg@10": 0.5}}
    body = [line for line in markdown_table(evaluation).splitlines() if line.startswith("|")][:9]
    assert {line.replace("\\|", "").count("|") for line in body} == {8}


@pytest.mark.parametrize(
    "evaluation", [{}, {"stages": {}}, {"stages": {"sft": {}}}, {"stages": {"sft": {"greedy": {}}}}]
)
def test_little_input_is_a_short_table(evaluation):
    assert markdown_table(evaluation)
    assert console_table(evaluation)


def test_console_has_the_numbers_uncut_and_names_are_not_markup(evaluation):
    evaluation["dataset"] = "[red]toy[/red]"
    evaluation["stages"]["[bold]"] = {"plain": {"ndcg@10": value(0.5)}}
    text = console_table(evaluation, width=120)
    assert "[red]toy[/red]" in text
    assert "[bold]" in text
    assert "0.2000 [0.1900, 0.2100]" in text
    assert "\x1b" not in text


def test_values():
    assert read_value(0.5) == (0.5, None, None, None)
    assert read_value({"mean": 0.5, "low": None, "high": float("nan"), "n": 3}) == (0.5, None, None, 3)
    assert read_value({"mean": float("nan")}) is None
    assert read_value(None) is None
    assert read_value({}) is None
    assert finite(True) is None
    assert finite("1") is None
    assert finite(float("inf")) is None
    assert finite(json.loads("NaN")) is None


def test_stage_names_with_hyphens():
    stages = {"grpo": {}, "sft": {}, "grpo-long": {}}
    assert split_difference("grpo-sft", stages) == ("grpo", "sft")
    assert split_difference("grpo-long-sft", stages) == ("grpo-long", "sft")
    assert split_difference("grpo-grpo-long", stages) == ("grpo", "grpo-long")
    assert split_difference("grpo-x", stages) is None


def test_lift_is_not_known_over_zero(evaluation):
    evaluation["stages"]["sft"]["greedy"]["ndcg@10"] = value(0.0)
    assert lift_percent(evaluation, "grpo-sft", "greedy") is None
    assert lift_percent(evaluation, "grpo-nobody", "greedy") is None
    assert stage_value(evaluation, "nobody", "greedy") is None
    # grpo has two modes, neither of which is plain: there is nothing to fall back on.
    assert stage_value(evaluation, "grpo", "plain") is None


def test_summary_over_seeds_says_so(evaluation):
    evaluation["seeds"] = [0, 1, 2]
    text = markdown_table(evaluation)
    assert "seeds: 0 1 2" in text
    assert "Student t" in text
    assert "bootstrap" not in text
