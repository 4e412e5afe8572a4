"""Each kind of reasoning goes through all stages of the main recipe, killed once, and on to a cache."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
import yaml

pytestmark = pytest.mark.slow

SMOKE = Path(__file__).parent / "configs"
PAGE = (Path(__file__).parents[2] / "docs" / "kinds.md").read_text(encoding="utf-8")

KINDS = {
    "retrieval": ({"tokens": 64, "items": 3, "companions": 2}, "Chosen together by others:\nwith "),
    "cot_rec": ({"most": 2}, "History:\n"),
    "contrast": ({"tokens": 32}, "The user:\nas a rule: "),
    "profile": ({"window": 4, "every": 2, "tokens": 32}, "What the user chose before:\nmost: "),
}


ON_REQUEST = ("retrieval",)  # longer prompts; what it shows is tested by itself


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.on_request] if kind in ON_REQUEST else []) for kind in KINDS]
)
def test_a_kind_goes_through_all_stages(launcher, tmp_path, kind):
    settings, beginning = KINDS[kind]
    if kind == "contrast":  # the one that docs/kinds.md prints
        (tmp_path / "my_kind.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1])
        kind = f"{tmp_path}/my_kind.py:contrast"
    told = {"reasoning_kind": kind, "kind_settings": settings, "max_reasoning_tokens": 24}
    mine = (("grpo", "grpo", told), ("sft", "sft", told))
    for name, source, changed in (*mine, ("steps", "grpo", {"sft_config": "plain.yaml"}), ("plain", "sft", {})):
        config = yaml.safe_load((SMOKE / f"{source}.yaml").read_text())
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config | changed))
    run = tmp_path / "run"
    where = ("--output_dir", run, "--baselines", "false", "--train_direct", "false", "--max_test", 8)
    flags = ("--config", tmp_path / "grpo.yaml", *where)
    checkpoint = run / "grpo" / "checkpoint-2" / "trainer_state.json"
    launcher.start("grpo_teacher", *flags).kill_when(checkpoint.exists)
    other = launcher.start("grpo_teacher", "--config", tmp_path / "steps.yaml", *where).wait()
    assert other.process.returncode == 1
    assert f"was made with reasoning_kind='{kind}', now 'steps'" in other.output
    launcher.finish("grpo_teacher", *flags)

    found = json.loads((run / "evaluation.json").read_text())
    assert set(found["stages"]) == {"sft", "grpo"}
    assert {"taste=shifted", "taste=kept"} <= set(found["slices"]["grpo"]["greedy"])
    paths = pl.read_parquet(run / "paths" / "grpo.greedy.parquet")
    # A user of rare items, or of few events, has no section.
    assert paths["prompt"].str.starts_with(beginning).mean() > 0.5
    assert (run / "profiles.parquet").is_file() == (kind == "profile")
    assert (run / "ablation" / "grpo.json").is_file() == (kind == "cot_rec" or ":" in kind)

    answers = run / "answers" / "grpo.greedy.parquet"
    before = answers.stat().st_mtime_ns
    launcher.finish("evaluate", "--run_dir", run, "--baselines", "false", "--max_test", 8)
    assert answers.stat().st_mtime_ns == before
    asked = ["--source", "teacher", "--stage", "grpo", "--mode", "greedy", "--last_positions", "1", "--top_k", "5"]
    launcher.finish("cache_teacher", *asked, "--run_dir", run, "--output_dir", run / "cache")
    card = json.loads((run / "cache" / "card.json").read_text())
    assert card["settings"]["reasoning_kind"] == kind
    assert card["settings"]["kind_settings"] == settings
