"""What each stage added to the one that it builds on: numbers worked out by hand, and where they are shown."""

import polars as pl
import pytest

from anyo_rl.evaluation.summarise import differences, stage_values
from anyo_rl.evaluation.summary import Summary
from anyo_rl.evaluation.table import added_cells, console_table, difference_cells, markdown_table

ADDED = [("grpo_fused", "evidence"), ("student_distilled", "student"), ("grpo", "pretrain")]


def answers(*ranks):
    """One example of each of four users."""
    users = ["a", "b", "c", "d"]
    return pl.DataFrame({"example_id": users, "user_id": users, "rank": ranks, "top_ids": [["x"]] * 4})


@pytest.fixture
def summary():
    """Gains of the first ten: rank 1 has 1, rank 3 has 1/2, rank 11 has 0."""
    frames = {
        "evidence": {"plain": answers(3, 3, 11, 11)},  # .25
        "grpo_fused": {"greedy": answers(1, 3, 11, 3), "mixture": answers(1, 1, 3, 11)},  # .5, .625
        "student": {"plain": answers(1, 1, 11, 11)},  # .5
        "student_distilled": {"plain": answers(1, 3, 11, 11)},  # .375
        "grpo": {"greedy": answers(11, 11, 11, 11)},
    }
    added = [pair for pair in ADDED if set(pair) <= set(frames)]
    found = differences(frames, 0, added)
    return Summary(
        stages=stage_values(frames, 4, 0), differences=found, added=tuple(f"{a}-{b}" for a, b in added), n_users=4
    )


def test_by_hand(summary):
    header, body = added_cells(summary)
    assert header[:4] == ["Added by", "Mode", "NDCG@10", "Lift"]
    found = {(cells[0], cells[1]): (cells[2].split(" ")[0], cells[3]) for cells in body}
    assert found == {
        ("grpo_fused to evidence", "greedy"): ("+0.2500", "+100.0%"),
        ("grpo_fused to evidence", "mixture"): ("+0.3750", "+150.0%"),
        ("student_distilled to student", "plain"): ("-0.1250", "-25.0%"),
    }
    # One user in four loses half a point: of four draws with replacement none may have it, or all.
    interval = summary.differences["student_distilled-student"]["plain"]["ndcg@10"]
    assert interval.low in (-0.375, -0.5)
    assert (interval.high, interval.n) == (0.0, 4)


def test_they_stand_in_a_table_of_their_own(summary):
    assert not {cells[0] for cells in difference_cells(summary)[1]} & {"student_distilled − student"}
    text = markdown_table(summary)
    assert text.index("What each stage added:") < text.index("Paired differences:")
    assert "| student_distilled to student | plain | -0.1250 [" in text
    assert "student_distilled" in console_table(summary, width=140)


def test_they_are_read_as_they_were_written(summary):
    written = summary.as_json()
    assert written["added"] == ["grpo_fused-evidence", "student_distilled-student"]
    assert Summary.from_json(written).added == summary.added
    assert Summary.from_json(written | {"added": 3}).added == ()
    assert "added" not in Summary().as_json()
    assert added_cells(Summary()) == (added_cells(summary)[0], [])


def test_a_teacher_with_evidence_stands_beside_either_alone():
    names = ("evidence", "direct", "direct_fused", "grpo", "grpo_fused")
    found = differences({name: {"plain": answers(1, 3, 11, 11)} for name in names}, 0)
    fused = {name for name in found if name.partition("-")[0].endswith("_fused")}
    assert fused == {
        *("direct_fused-evidence", "direct_fused-direct"),
        *("grpo_fused-evidence", "grpo_fused-grpo", "grpo_fused-direct_fused"),
    }


def test_students_that_had_help_are_set_against_one_another():
    """By hand, NDCG@10 is 1 at rank 1, 1/2 at rank 3, 0 beyond 10: (1 + 1/2 + 0 + 0) − (1 + 0 + 0 + 0), over 4."""
    frames = {
        "student": {"plain": answers(1, 1, 11, 11)},
        "student_text": {"plain": answers(1, 11, 11, 11)},
        "student_taught": {"plain": answers(1, 3, 11, 11)},
    }
    found = differences(frames, 0)
    assert set(found) == {"student_text-student", "student_taught-student", "student_taught-student_text"}
    assert found["student_taught-student_text"]["plain"]["ndcg@10"].mean == pytest.approx(0.125)
