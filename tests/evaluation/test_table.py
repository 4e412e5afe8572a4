import pytest

from anyo_rl.evaluation.summary import Summary
from anyo_rl.evaluation.table import console_table, markdown_table, rows


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
    table = rows(Summary.from_json(evaluation))
    assert [(row.stage, row.mode) for row in table] == [
        ("sft", "greedy"), ("grpo", "greedy"), ("grpo", "mixture"), ("direct", "plain"), ("mine", "plain"),
        ("oracle", "plain"),
    ]  # fmt: skip
    assert [row.share_of_oracle for row in table] == pytest.approx([0.25, 0.5, 0.6, 0.4, 0.125, 1.0])


def test_stages_that_learned_from_ranks_stand_between_sft_and_direct():
    stages = {stage: {"greedy": {"ndcg@10": value(0.1)}} for stage in ("direct", "grpo", "dpo", "star", "sft")}
    assert [row.stage for row in rows(Summary.from_json({"stages": stages}))] == [
        "sft",
        "star",
        "dpo",
        "grpo",
        "direct",
    ]


def test_markdown_states_how_and_what(evaluation):
    text = markdown_table(Summary.from_json(evaluation))
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
    assert "oracle" not in markdown_table(Summary.from_json(evaluation))


def test_every_row_of_a_table_has_the_same_number_of_cells_whatever_the_names(evaluation):
    evaluation["stages"]["a|b\nc"] = {"x|y": {"ndcg@10": 0.5}}
    body = [line for line in markdown_table(Summary.from_json(evaluation)).splitlines() if line.startswith("|")][:9]
    assert {line.replace("\\|", "").count("|") for line in body} == {8}


@pytest.mark.parametrize(
    "evaluation", [{}, {"stages": {}}, {"stages": {"sft": {}}}, {"stages": {"sft": {"greedy": {}}}}]
)
def test_little_input_is_a_short_table(evaluation):
    assert markdown_table(Summary.from_json(evaluation))
    assert console_table(Summary.from_json(evaluation))


def test_console_has_the_numbers_uncut_and_names_are_not_markup(evaluation):
    evaluation["dataset"] = "[red]toy[/red]"
    evaluation["stages"]["[bold]"] = {"plain": {"ndcg@10": value(0.5)}}
    text = console_table(Summary.from_json(evaluation), width=120)
    assert "[red]toy[/red]" in text
    assert "[bold]" in text
    assert "0.2000 [0.1900, 0.2100]" in text
    assert "\x1b" not in text


def test_stage_names_with_hyphens():
    summary = Summary(stages={"grpo": {}, "sft": {}, "grpo-long": {}})
    assert summary.compared("grpo-sft") == ("grpo", "sft")
    assert summary.compared("grpo-long-sft") == ("grpo-long", "sft")
    assert summary.compared("grpo-grpo-long") == ("grpo", "grpo-long")
    assert summary.compared("grpo-x") is None


def test_lift_is_not_known_over_zero(evaluation):
    evaluation["stages"]["sft"]["greedy"]["ndcg@10"] = value(0.0)
    summary = Summary.from_json(evaluation)
    assert summary.lift_percent("grpo-sft", "greedy") is None
    assert summary.lift_percent("grpo-nobody", "greedy") is None
    assert summary.value("nobody", "greedy") is None
    # grpo has two modes, neither of which is plain: there is nothing to fall back on.
    assert summary.value("grpo", "plain") is None


def test_a_summary_is_written_as_it_was_read(evaluation):
    evaluation["slices"] = {"grpo": {"greedy": {"cold_item=true": {"n": 5, "ndcg@10": value(0.1)}}}}
    evaluation["true_intent"] = {"grpo": 0.5}
    written = Summary.from_json(evaluation).as_json()
    assert written == evaluation
    assert list(written) == ["dataset", "split", "mask_history", "n_users", "n_items", "ranker", "seed", "n_paths",
                             "stages", "differences", "slices", "true_intent"]  # fmt: skip
    assert Summary.from_json(written | {"seeds": [0, 1], "unknown": 3}).seeds == (0, 1)
    with pytest.raises(ValueError, match="found list, expected an object"):
        Summary.from_json([])


def test_examples_are_told_where_a_user_has_several(evaluation):
    summary = Summary.from_json(evaluation | {"n_examples": 4866})
    assert "examples: 4,866, users: 1,500" in markdown_table(summary)


def test_summary_over_seeds_says_so(evaluation):
    evaluation["seeds"] = [0, 1, 2]
    text = markdown_table(Summary.from_json(evaluation))
    assert "seeds: 0 1 2" in text
    assert "Means over 3 seeds" in text
    assert "seed: 3" not in text


def test_a_stage_of_fewer_seeds_says_so_and_lifts_are_over_what_both_have():
    def of(mean, *by_seed):
        return {"plain": {"ndcg@10": {"mean": mean, "n": 10 * len(by_seed), "by_seed": list(by_seed)}}}

    summary = Summary.from_json(
        {
            "seeds": [0, 1, 2],
            "stages": {
                "grpo": of(0.4, 0.3, 0.4, 0.5),
                "sft_more": of(0.4, 0.4),
                "item_knn": of(0.2, 0.2),
                "direct": of(0.2, 0.1, 0.2, 0.3),
            },
            "differences": {
                "grpo-sft_more": of(-0.1, -0.1),  # of the first seed: .3 - .4
                "sft_more-grpo": of(0.1, 0.1),
                "grpo-direct": of(0.2, 0.2, 0.2, 0.2),
            },
        }
    )
    lifts = {name: summary.lift_percent(name, "plain") for name in summary.differences}
    assert lifts == {
        "grpo-sft_more": pytest.approx(-25.0),
        "sft_more-grpo": pytest.approx(100 / 3),
        "grpo-direct": pytest.approx(100.0),
    }
    table = markdown_table(summary)
    assert "| sft_more (1 of 3 seeds) | plain |" in table
    assert "| item_knn | plain |" in table  # it draws nothing
    assert "| direct | plain |" in table
