"""The fair comparison as its documented command: every teacher there, by its rules, killed and gone on with."""

import json

import pytest
import yaml

from anyo_rl.evaluation.convergence import Rule, read_trainings
from anyo_rl.evaluation.summary import read_summary
from anyo_rl.stages.compare import CONTROL
from tests.recipes.conftest import SMOKE

pytestmark = pytest.mark.slow

TEACHERS = {"sft", "grpo", "sft_more", "item_only", "post_hoc", "filler", "direct"}


def test_a_comparison_of_two_seeds(launcher, tmp_path):
    run = tmp_path / "fair"
    flags = ("--config", SMOKE / "grpo.yaml", "--output_dir", run, "--seeds", 0, 1, "--most_updates", 6)
    flags += ("--eval_every", 3, "--direct_learning_rates", 1e-3, 1e-2, "--direct_dropouts", 0.2)
    flags += ("--direct_weight_decays", 0.1, "--max_validation", 4, "--max_test", 6, "--eval_on_start", "false")
    # Killed in the second seed, it goes on there.
    launcher.start("compare", *flags).kill_when(lambda: (run / "seed-1" / "sft" / "teacher").exists())
    first = {file: file.stat().st_mtime_ns for file in run.rglob("model.safetensors") if "checkpoint" not in str(file)}
    assert len(first) >= 4 + len(TEACHERS) + 1
    output = launcher.finish("compare", *flags)
    assert all(file.stat().st_mtime_ns == time for file, time in first.items())

    summary = read_summary(run)
    assert set(summary.stages) >= TEACHERS | {"direct_ensemble", "popularity", "item_knn", "sasrec", "oracle"}
    assert summary.seeds == (0, 1)
    for stage in TEACHERS:
        assert all(len(value["ndcg@10"].by_seed) == 2 for value in summary.stages[stage].values()), stage
    assert {"grpo-item_only", "grpo-sft_more", "grpo-direct_ensemble", "sft-filler"} <= set(summary.differences)
    assert "direct (not converged)" in output  # 6 updates are not 3,000
    assert "has to stay below that for 3,000 more" in " ".join(output.split())

    chosen = json.loads((run / "direct" / "chosen.json").read_text())
    tried = {
        folder.name: read_trainings(folder / "metrics.jsonl")["direct"] for folder in (run / "direct").glob("lr-*")
    }
    assert len(tried) == 4  # two rates, then the dropout and the decay
    best = max(tried, key=lambda name: tried[name].value)
    assert tried[best].value == pytest.approx(
        tried[f"lr-{chosen['learning_rate']:g}-decay-{chosen['weight_decay']:g}-dropout-{chosen['dropout']:g}"].value
    )
    for seed in (0, 1):
        folder = run / f"seed-{seed}"
        found = read_trainings(folder / "metrics.jsonl")
        assert set(found) == TEACHERS
        rival = found["sft"].flops + found["grpo"].flops
        assert found["item_only"].flops == pytest.approx(found["grpo"].flops, rel=0.3)
        for stage, flops in (("post_hoc", rival), ("filler", rival), ("sft_more", found["grpo"].flops)):
            assert found[stage].updates == 6 or not CONTROL.missing(found[stage], flops)
        assert yaml.safe_load((folder / "config.yaml").read_text())["GRPOConfig"]["seed"] == seed
        assert (folder / "report.html").exists()


def test_the_rule_of_controls_is_softer_than_that_of_opponents():
    assert Rule(0, 0.5, 1.0) == CONTROL


@pytest.mark.on_request
def test_a_comparison_needs_a_warm_start(launcher, tmp_path):
    done = launcher.start(
        "compare", "--config", SMOKE / "grpo.yaml", "--output_dir", tmp_path / "x", "--sft_config", ""
    )
    done.wait()
    assert done.process.returncode == 1
    assert "a comparison trains its teachers from the start: name an sft_config" in done.output
    done = launcher.start("compare", "--config", SMOKE / "grpo.yaml", "--controls", "nothing").wait()
    assert "controls has nothing; expected some of filler, item_only, post_hoc, sft_more" in done.output
