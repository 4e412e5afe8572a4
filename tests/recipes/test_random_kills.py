"""Every recipe, killed at random moments and started again, leaves what one that was left alone leaves."""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.numpy import load_file

from tests.recipes.conftest import SMOKE, Launcher, Run, logged_lines

N_KILLS = int(os.environ.get("ANYO_RL_KILLS", "0"))  # of all recipes together
SHORT = "--baselines false --max_test 8"
TOY = "--toy_users 120 --toy_categories 5"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not N_KILLS, reason="set ANYO_RL_KILLS to the number of random moments over all recipes"),
]


def of_teacher(config: str, more: str = "") -> Callable[[Run, Path], list[object]]:
    """Flags of a recipe that goes on from the smoke run's warm start."""
    return lambda run, _: ["--config", SMOKE / config, "--model_name_or_path", run.teacher, *more.split()]


def of_stages(config: str, more: str = "") -> Callable[[Run, Path], list[object]]:
    """The same where the recipe would make a warm start of its own."""
    return of_teacher(config, f"--sft_config= --train_direct false {SHORT} {more}")


def alone(flags: str) -> Callable[[Run, Path], list[object]]:
    """Flags of a recipe that needs nothing that another one made."""
    return lambda *_: [word if not word.endswith(".yaml") else SMOKE / word for word in flags.split()]


def on_paths(config: str) -> Callable[[Run, Path], list[object]]:
    """Flags of a recipe that learns from a sampling job."""
    return lambda run, made: [*of_teacher(config)(run, made), "--paths", made / "paths", "--max_test", 8]


def sampled(run: Run) -> list[object]:
    """Flags of a sampling job of the warm start."""
    data = f"{TOY} --rationale_share 0.5 --max_reasoning_tokens 16"
    return ["--model_name_or_path", run.teacher, *data.split()]


# What each is told, from the smoke run and the folder of what was made beforehand.
RECIPES: dict[str, Callable[[Run, Path], list[object]]] = {
    "grpo_teacher": alone(f"--config grpo.yaml {SHORT}"),
    "sft_teacher": alone(f"--config sft.yaml {SHORT}"),
    "pretrain_teacher": alone(f"--config pretrain.yaml {SHORT}"),
    "star_teacher": of_stages("star.yaml"),
    "ppo_teacher": of_stages("ppo.yaml", "--max_steps 4 --eval_steps 2 --save_steps 2"),
    "dpo_teacher": on_paths("dpo.yaml"),
    "train_prm": on_paths("prm.yaml"),
    "distill_reasoning": lambda run, _: [
        *("--config", SMOKE / "distill_reasoning.yaml", "--baselines", "false", "--teacher", run.teacher)
    ],
    "sample_paths": lambda run, _: [*sampled(run), "--max_examples", 60, "--n_samples", 2, "--n_shards", 4],
    "rank_evidence": alone(f"{TOY} --seeds 0 1 --n_folds 3 --n_candidates 20 --training_scores true"),
    "baselines": alone(f"{TOY} --tune false --seeds 0 1 --names popularity item_knn sasrec"),
    "cache_teacher": alone("--toy_users 1500 --n_folds 2 --top_k 20"),
    "train_student": alone(f"{TOY} --seeds 0 1 --max_epochs 4"),
    "distill_student": lambda _, made: [
        *alone(f"{TOY} --seeds 0 --max_epochs 4 --labels 0.3 0.6")(_, made),
        *("--teacher_cache", made / "cache"),
    ],
    "compare": alone(
        f"--config grpo.yaml --seeds 0 1 --most_updates 6 --eval_every 3 --direct_learning_rates 1e-2 "
        f"--direct_dropouts 0.2 --direct_weight_decays 0.1 --max_validation 4 --eval_on_start false {SHORT}"
    ),
    "anyo": alone("--config anyo.yaml"),
    "agent_teacher": alone("--config agent.yaml"),
}


@pytest.fixture(scope="module")
def made(finished_run, tmp_path_factory) -> Path:
    """What some recipes learn from: a sampling job of the warm start, and a cache of item-kNN."""
    folder = tmp_path_factory.mktemp("made")
    launcher = Launcher(folder)
    more = "--n_samples 4 --max_examples 60 --temperature 1.3"
    launcher.finish("sample_paths", *sampled(finished_run), *more.split(), "--output_dir", folder / "paths")
    launcher.finish("cache_teacher", *f"{TOY} --n_folds 2 --top_k 20".split(), "--output_dir", folder / "cache")
    return folder


def left_in(folder: Path) -> dict[str, Any]:
    """What a finished run leaves, by file, without checkpoints, clocks and what only people read."""

    def left(file: Path) -> Any:
        match file.suffix:
            case ".parquet":
                return pl.read_parquet(file).to_dict(as_series=False)
            case ".safetensors":
                return {name: (array.shape, array.tobytes()) for name, array in load_file(file).items()}
            case ".npy" | ".bin":
                return file.read_bytes()
            case ".jsonl":
                return logged_lines(file.parent)
            case ".json":
                return without_clocks(json.loads(file.read_text()))
        return None

    # Besides checkpoints: what the datasets library maps, what TensorBoard reads, and files that a kill cut short.
    passed_over = ("checkpoint-", "mapped", "events.out", ".partial")
    files = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file): left(folder / file) for file in files if not any(name in str(file) for name in passed_over)}


def without_clocks(found: Any) -> Any:
    """JSON without times, and without the run folder's own name."""
    if isinstance(found, dict):
        return {
            name: without_clocks(value)
            for name, value in found.items()
            if not any(word in name for word in ("seconds", "_ms", "_dir"))
        }
    return [without_clocks(value) for value in found] if isinstance(found, list) else found


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_at_random_moments_nothing_is_lost_or_twice(recipe, finished_run, made, launcher, tmp_path, capsys):
    place = list(RECIPES).index(recipe)
    n_kills = N_KILLS // len(RECIPES) + (place < N_KILLS % len(RECIPES))
    if not n_kills:
        pytest.skip(f"{N_KILLS} kills are fewer than recipes")
    flags = RECIPES[recipe](finished_run, made)
    launcher.launched.add(recipe)  # how long it takes is measured as it is killed: forked
    begin = time.monotonic()
    launcher.finish(recipe, *flags, "--output_dir", tmp_path / "calm")
    took_s = time.monotonic() - begin
    draws = random.Random(recipe)
    for _ in range(n_kills):
        end_s = draws.uniform(0.05, 0.95) * took_s
        launched = launcher.start(recipe, *flags, "--output_dir", tmp_path / "run")
        begin = time.monotonic()
        while launched.process.poll() is None and time.monotonic() < begin + end_s:
            time.sleep(0.005)
        ended = launched.process.poll() is not None
        launched.kill()
        assert not ended or launched.process.returncode == 0, launched.output[-3000:]
        with capsys.disabled():
            print(f"{recipe} after {end_s:.2f} of {took_s:.2f} s{', already at its end' if ended else ''}", flush=True)
    launcher.finish(recipe, *flags, "--output_dir", tmp_path / "run")
    calm, run = left_in(tmp_path / "calm"), left_in(tmp_path / "run")
    assert set(run) == set(calm)
    for file in calm:
        assert run[file] == calm[file], file
