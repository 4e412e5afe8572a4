"""The agent's recipe, as documented and very small: whole, killed and gone on with, on two processes, refused."""

import json

import pytest
from safetensors.numpy import load_file

from anyo_rl.agent.outcomes import read_outcomes
from anyo_rl.evaluation.convergence import read_trainings
from anyo_rl.run.folder import METRICS

pytestmark = pytest.mark.slow


@pytest.fixture
def flags(repo_root):
    return lambda folder: (
        *("--config", repo_root / "tests" / "recipes" / "configs" / "agent.yaml"),
        *("--output_dir", folder),
    )


def test_an_agent_is_trained_and_compared_and_goes_on_after_a_kill(launcher, flags, tmp_path):
    whole = tmp_path / "whole"
    output = launcher.finish("agent_teacher", *flags(whole))
    assert "| optimum | 0.000 | 1.000 | 1.000 | 0.0 |" in output
    outcomes = read_outcomes(whole)
    assert list(outcomes) == ["agent", "agent_sft", "no_tools", "no_tools_sft", "greedy", "greedy_for_price", "best"]
    assert {len(rows) for rows in outcomes.values()} == {8}
    page = (whole / "report.html").read_text()
    assert "<h2>Plans, step by step</h2>" in page
    assert "<script" not in page
    spent = {name: one.flops for name, one in read_trainings(whole / METRICS).items()}
    assert spent["no_tools_sft"] + spent["no_tools"] >= spent["agent_sft"] + spent["agent"] > 0

    killed = tmp_path / "killed"
    started = launcher.start("agent_teacher", *flags(killed), "--train_no_tools", "false")
    started.kill_when(lambda: (killed / "agent" / "checkpoint-2" / "trainer_state.json").is_file())
    launcher.finish("agent_teacher", *flags(killed), "--train_no_tools", "false")
    for stage in ("agent_sft", "agent"):
        mine, other = (load_file(run / stage / "teacher" / "model.safetensors") for run in (whole, killed))
        assert all((mine[name] == other[name]).all() for name in mine)
    assert json.loads((killed / "outcomes" / "agent.json").read_text()) == json.loads(
        (whole / "outcomes" / "agent.json").read_text()
    )
