"""Recipes whose teachers answer with semantic ids."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

DDP = {"config": "cpu_2.yaml"}
ZERO3 = {"config": "zero3.yaml", "launch_flags": ("--mixed_precision", "no", "--main_process_port", "0")}
SMOKE = Path(__file__).parent / "configs"
# As little as shows that each stage hands its ids on.
SHORT = ("--max_steps", 2, "--max_test", 8, "--baselines", "false")

pytestmark = pytest.mark.slow


def ids_of(folder: Path) -> dict:
    return json.loads((folder / "semantic_ids.json").read_text())


def evaluation(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_computed_ids_go_through_all_stages(launcher, tmp_path):
    pytest.importorskip("faiss", reason="needs the `semantic` extra")
    run = tmp_path / "run"
    aligned = ("--alignment_tasks", "title", "words")
    flags = ("--config", SMOKE / "grpo.yaml", "--item_tokens", "semantic_id", *aligned, *SHORT, "--output_dir", run)
    launcher.finish("grpo_teacher", *flags)
    made = ids_of(run)
    n_items = evaluation(run)["n_items"]
    assert len(made["codes"]) == len(set(made["codes"].values())) == n_items
    for stage in ("sft", "direct", "grpo"):
        assert ids_of(run / stage / "teacher") == made
        tokenizer = AutoTokenizer.from_pretrained(run / stage / "teacher")
        first = next(iter(made["codes"].values()))
        assert len(tokenizer.encode(first, add_special_tokens=False)) == first.count("<")
    assert set(evaluation(run)["stages"]) == {"sft", "direct", "grpo"}
    found = evaluation(run)

    output = launcher.finish("grpo_teacher", *flags)  # nothing is done again
    assert "evaluating" not in output
    assert "validation NDCG@10" not in output
    assert (ids_of(run), evaluation(run)) == (made, found)

    # The next run begins with the teacher of this one: its ids are the teacher's, titles are refused.
    start = ("--config", SMOKE / "grpo.yaml", "--sft_config", "", "--model_name_or_path", run / "sft" / "teacher")
    done = launcher.start("grpo_teacher", *start, *SHORT, "--output_dir", tmp_path / "titles").wait()
    assert done.process.returncode == 1
    assert "answers with semantic ids" in done.output
    assert 'recipes/grpo_teacher.py", line' not in done.output
    lora = ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--item_tokens", "semantic_id")
    launcher.finish("grpo_teacher", *start, *SHORT, *lora, "--output_dir", tmp_path / "lora")
    assert ids_of(tmp_path / "lora" / "grpo" / "teacher") == made
    assert not (tmp_path / "lora" / "semantic_ids.json").exists()  # none was made


@pytest.mark.parametrize("launch", [DDP, pytest.param(ZERO3, marks=pytest.mark.on_request)], ids=["ddp", "zero3"])
def test_two_processes_add_the_same_tokens(request, finished_run, launcher, tmp_path, launch):
    """Rows are added to a teacher that is whole in each process, and shared out afterwards."""
    pytest.importorskip("faiss", reason="needs the `semantic` extra")
    if launch is ZERO3:
        request.getfixturevalue("deepspeed_ready")
    run, start = tmp_path / "run", finished_run.teacher
    flags = ("--config", SMOKE / "sft.yaml", "--model_name_or_path", start, "--item_tokens", "semantic_id")
    where = ("--use_cpu",) if launch is DDP else ("--ddp_backend", "gloo")
    short = ("--max_steps", 2, "--max_test", 8, "--n_paths", 2)
    output = launcher.finish("sft_teacher", *flags, *short, *where, "--output_dir", run, **launch)
    assert output.count("codes from title vectors") == 1
    made = ids_of(run)
    assert ids_of(run / "sft" / "teacher") == made
    codes = {code + ">" for text in made["codes"].values() for code in text.split(">")[:-1]}
    before, after = (load_file(folder / "model.safetensors") for folder in (start, run / "sft" / "teacher"))
    name = "model.embed_tokens.weight"
    assert len(after[name]) >= len(AutoTokenizer.from_pretrained(start)) + len(codes)
    assert len(after[name]) > len(before[name])
    assert all(np.isfinite(array).all() for array in after.values())
    assert len(np.unique(after[name][-len(codes) :], axis=0)) == len(codes)


@pytest.mark.on_request
def test_published_ids_of_office(launcher, data_folder, tmp_path):
    if not (data_folder / "office").is_dir():
        pytest.skip("no office/ in ANYO_RL_DATA")
    run = tmp_path / "run"
    data = ("--dataset", "office", "--split", "given", "--data_dir", data_folder.resolve(), "--max_history", 3)
    ids = ("--item_tokens", "semantic_id", "--semantic_id_column", "sid", "--rationale_attributes", "brand")
    flags = ("--config", SMOKE / "sft.yaml", *data, *ids, "--max_steps", 2, "--max_test", 4, "--n_paths", 2)
    launcher.finish("sft_teacher", *flags, "--output_dir", run)
    found = ids_of(run / "sft" / "teacher")
    assert found["n_collisions"] == 15
    assert found["codes"]["0"] == "<a_60><b_159><c_203>"
    assert evaluation(run)["n_items"] == 3459
    launcher.finish("evaluate", "--run_dir", run, "--baselines", "false")
