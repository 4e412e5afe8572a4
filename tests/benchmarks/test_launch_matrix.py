"""The table of launches: what is compared with what, what counts as failed, and its commands."""

import json
import sys

import pytest


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch, repo_root):
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    import launch_matrix

    return launch_matrix


def test_losses_are_held_against_the_launch_that_sees_the_same_data(matrix):
    cells = [
        matrix.Cell("sft", "1 process", losses=[2.0, 1.0]),
        matrix.Cell("sft", "2, DDP", losses=[2.0, 1.01]),
        matrix.Cell("sft", "2, ZeRO-3", "it broke"),
        matrix.Cell("grpo", "1 process", losses=[5.0, 5.0]),
        matrix.Cell("grpo", "2, DDP", losses=[3.0, 4.0]),
        matrix.Cell("grpo", "2, ZeRO-3", losses=[3.0, 4.4]),
    ]
    found = [matrix.difference(cell, cells) for cell in cells]
    # One process draws other paths in GRPO than two do.
    assert found == [None, pytest.approx(0.01), None, None, None, pytest.approx(0.1)]
    assert matrix.markdown(cells).splitlines() == [
        "| recipe | 1 process | 2, DDP | 2, ZeRO-3 |",
        "|---|---|---|---|",
        "| sft | 2.0000, 1.0000 | 2.0000, 1.0100 (1e-02) | it broke |",
        "| grpo | 5.0000, 5.0000 | 3.0000, 4.0000 | 3.0000, 4.4000 (1e-01) |",
    ]


def test_global_batches_are_the_same_and_ports_are_free(matrix, tmp_path):
    for name, launch in matrix.LAUNCHES.items():
        flags = matrix.recipe_flags("dpo", tmp_path, launch.n_processes)
        batch = int(flags[flags.index("--per_device_train_batch_size") + 1])
        assert batch * launch.n_processes == 16
        command = matrix.launch_command(launch, "dpo", flags)
        assert ("NODE" in command) == name.startswith("2 nodes")
        assert (matrix.ROOT / "accelerate_configs" / launch.config).is_file()
        assert str(matrix.ROOT / "recipes" / "dpo_teacher.py") in command


def test_a_run_that_is_not_the_one_asked_for_has_failed(matrix, tmp_path):
    launch, losses = matrix.LAUNCHES["2, ZeRO-3"], [{"loss": 2.0}, {"loss": 1.0}, {"eval_mrr": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, losses)))
    (tmp_path / "evaluation.json").touch()
    for processes, problem in ((2, ""), (1, "(1, 'DEEPSPEED') ran, expected (2, 'DEEPSPEED')")):
        (tmp_path / "versions.json").write_text(
            json.dumps({"num_processes": processes, "distributed_type": "DEEPSPEED"})
        )
        cell = matrix.Cell("sft", "2, ZeRO-3")
        matrix.read_cell(cell, launch, tmp_path)
        assert (cell.problem, cell.losses) == (problem, [2.0, 1.0])


def test_why_a_command_failed_is_in_its_log(matrix, tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('error: this is why')"]
    assert matrix.run(command, tmp_path / "run") == "error: this is why"
    assert matrix.run([sys.executable, "-c", ""], tmp_path / "run") == ""
    assert matrix.run([sys.executable, "-c", "import sys; sys.exit(3)"], tmp_path / "run") == "exit 3"
    torchrun = "Traceback\n  raise ChildFailedError(x)\ntorch.ChildFailedError: \nValueError: a batch of 3\n"
    assert matrix.last_error(torchrun) == "ValueError: a batch of 3"
