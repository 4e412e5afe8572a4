"""A teacher that thinks without words before it answers at once: SFT, fewer thoughts in its evaluation, a cache."""

import json
from pathlib import Path

import polars as pl
import pytest
from transformers import AutoTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.on_request]  # tests/stages has the same without a launcher

SMOKE = Path(__file__).parent / "configs"


def test_thoughts_go_from_sft_to_a_cache(launcher, tmp_path):
    run = tmp_path / "run"
    kind = ("--reasoning_kind", "latent", "--n_thoughts", 2)
    launcher.finish("sft_teacher", "--config", SMOKE / "sft.yaml", "--reasoning", "false", *kind, "--output_dir", run)
    assert "<thought_2>" in AutoTokenizer.from_pretrained(run / "direct" / "teacher").get_added_vocab()
    answers = run / "answers" / "direct.plain.parquet"
    whole = pl.read_parquet(answers)
    launcher.finish("evaluate", "--run_dir", run, "--baselines", "false", "--n_thoughts", 1)
    fewer = pl.read_parquet(answers)
    assert whole["example_id"].to_list() == fewer["example_id"].to_list()
    assert not whole.equals(fewer)
    asked = ["--source", "teacher", "--stage", "direct", "--mode", "plain", "--last_positions", "1", "--top_k", "5"]
    launcher.finish("cache_teacher", *asked, "--run_dir", run, "--output_dir", run / "cache")
    card = json.loads((run / "cache" / "card.json").read_text())
    assert (card["settings"]["reasoning_kind"], card["settings"]["kind_settings"]) == ("latent", {"n_thoughts": 2})
