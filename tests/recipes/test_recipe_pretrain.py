"""The sequence stage as its command: killed, and gone on with."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

SMOKE = Path(__file__).parent / "configs"

pytestmark = pytest.mark.slow


def test_a_killed_run_goes_on(launcher, logged, tmp_path):
    run = tmp_path / "run"
    flags = ("--config", SMOKE / "pretrain.yaml", "--output_dir", run)
    launcher.start("pretrain_teacher", *flags).kill_when(
        (run / "pretrain" / "checkpoint-2" / "trainer_state.json").exists
    )
    assert not (run / "pretrain" / "teacher").exists()
    launcher.finish("pretrain_teacher", *flags)
    rows = [row for row in logged(run) if row["stage"] == "pretrain"]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "eval_ndcg@10" in row] == [2, 4, 6]
    counted = [json.loads(line).get("flops", 0) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(counted) > 0
    assert set(json.loads((run / "evaluation.json").read_text())["stages"]) == {"pretrain"}

    # What starts from this folder knows its items.
    teacher = run / "pretrain" / "teacher"
    codes = json.loads((teacher / "semantic_ids.json").read_text())["codes"]
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    assert all(len(tokenizer.encode(code, add_special_tokens=False)) == 1 for code in codes.values())
