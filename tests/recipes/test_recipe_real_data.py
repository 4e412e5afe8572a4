"""The configs of real data run as documented, a few steps on little of the data."""

import json
from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
STEPS = "--max_steps 2 --eval_steps 1 --save_steps 1 --eval_on_start false --num_generations 4"
LITTLE = "--max_validation 8 --max_test 8 --n_paths 2 --max_reasoning_tokens 8 --per_device_train_batch_size 8"
FEW = "--rationale_share 0.05 --tiny_vocab_size 1000 --train_direct false --baselines false"
LEAST = (*STEPS.split(), *LITTLE.split(), *FEW.split())

pytestmark = pytest.mark.slow


def short_warm_start(folder: Path, dataset: str) -> Path:
    """The shipped config of the data set's warm start, cut to two steps."""
    shipped = yaml.safe_load((CONFIGS / dataset / "sft_teacher.yaml").read_text())
    (folder / "sft.yaml").write_text(yaml.safe_dump(shipped | {"max_steps": 2, "eval_steps": 2, "save_steps": 2}))
    return folder / "sft.yaml"


@pytest.mark.parametrize("dataset", [pytest.param("ml-100k", marks=pytest.mark.on_request), "office"])
def test_a_few_steps_on_real_data(dataset, data_folder, launcher, tmp_path):
    run = tmp_path / "run"
    where = ("--data_dir", data_folder, "--output_dir", run, "--sft_config", short_warm_start(tmp_path, dataset))
    flags = ("--config", CONFIGS / dataset / "grpo_teacher.yaml", *where, *LEAST)
    if dataset == "ml-100k":
        flags = (*flags, "--train_targets", 1)
        # Killed as by a power cut, and started again.
        first = run / "grpo" / "checkpoint-1" / "trainer_state.json"
        launcher.start("grpo_teacher", *flags).kill_when(first.exists)
        assert not (run / "grpo" / "teacher").exists()
    launcher.finish("grpo_teacher", *flags)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "grpo" and "eval_ndcg@10" in row] == [1, 2]
    summary = json.loads((run / "evaluation.json").read_text())
    assert set(summary["stages"]) == {"sft", "grpo"}
    assert (summary["dataset"], summary["n_examples"], summary["mask_history"]) == (dataset, 8, dataset == "ml-100k")
    assert json.loads((run / "data.json").read_text())
