"""The whole of it as its command: killed between two parts and gone on with, and on a plain csv."""

import json

import numpy as np
import pytest
import yaml

from tests.recipes.conftest import SMOKE

pytestmark = pytest.mark.slow

FROM_TEACHER = {"grpo", "grpo_fused", "sft", "sft_fused", "pretrain", "direct"}
OTHERS = {"popularity", "item_knn", "evidence", "student", "student_distilled"}
PARTS = ("baselines", "evidence", "student", "distilled")


def finished(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_a_run_that_is_killed_between_two_parts_ends_with_the_same_table(launcher, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ("--config", SMOKE / "anyo.yaml", "--output_dir")
    output = launcher.finish("anyo", *flags, whole)
    assert "student_distilled to student" in " ".join(output.split()) or "student_distilled" in output
    summary = finished(whole)
    assert set(summary["stages"]) >= FROM_TEACHER | OTHERS | {"oracle"}
    assert summary["added"] == [
        *("evidence-item_knn", "sft-pretrain", "grpo-sft", "grpo_fused-evidence", "grpo_fused-grpo"),
        "student_distilled-student",
    ]
    assert all((whole / part / "evaluation.json").is_file() for part in PARTS)
    assert "What each stage added" in (whole / "report.html").read_text()
    assert "What each stage added" in (whole / "evaluation.md").read_text()
    card = json.loads((whole / "cache" / "card.json").read_text())
    assert (card["source"], card["settings"]["stage"], "alpha" in card["settings"]) == ("teacher", "grpo", True)

    ready = killed / "evidence" / "evaluation.json"
    launcher.start("anyo", *flags, killed).kill_when(ready.is_file)
    assert not (killed / "grpo").exists()
    made = {file: file.stat().st_mtime_ns for file in killed.glob("*/seed-0/**/*.npy")}
    made |= {file: file.stat().st_mtime_ns for file in killed.glob("baselines/chosen/*.json")}
    launcher.finish("anyo", *flags, killed)
    assert made
    assert all(file.stat().st_mtime_ns == time for file, time in made.items())
    assert finished(killed) == summary


def test_a_part_that_was_made_with_other_settings_is_refused(launcher, tmp_path):
    run = tmp_path / "run"
    names = ("pretrain", "sft", "grpo", "evidence", "cache", "distill", "student")
    flags = ("--config", SMOKE / "anyo.yaml", "--output_dir", run)
    flags += tuple(word for name in names for word in (f"--{name}_config", ""))
    launcher.finish("anyo", *flags)
    assert set(finished(run)["stages"]) >= {"popularity", "item_knn"}
    (tmp_path / "other.yaml").write_text("names: [popularity]\ntune: false\n")
    done = launcher.start("anyo", *flags, "--baselines_config", tmp_path / "other.yaml").wait()
    assert done.process.returncode == 1
    assert f"{run / 'baselines'} was made with" in done.output


def test_a_plain_csv(launcher, tmp_path):
    """Forty users go round twelve items; what the teacher answers with is titles of two words."""
    rng, names = np.random.default_rng(0), ("lamp", "chair", "table", "shelf")
    items = [f"{name} {style}" for name in names for style in ("oak", "steel", "glass")]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},{t}\n" for n, t in enumerate(items)))
    starts = rng.integers(0, 12, 40)
    rows = [f"u{user},i{(start + step) % 12},{step}\n" for user, start in enumerate(starts) for step in range(6)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))
    run = tmp_path / "run"
    flags = ("--config", SMOKE / "anyo.yaml", "--dataset", tmp_path / "log.csv", "--split", "leave_one_out")
    launcher.finish("anyo", *flags, "--output_dir", run, "--reasoning", "false")
    summary = finished(run)
    assert set(summary["stages"]) == OTHERS | {"pretrain", "pretrain_fused", "direct", "direct_fused"}
    assert {"direct-pretrain", "direct_fused-evidence"} <= set(summary["added"])
    assert yaml.safe_load((run / "config.yaml").read_text())["AnyoArguments"]["reasoning"] is False
    assert (run / "distilled" / "seed-0" / "student" / "student.safetensors").is_file()
