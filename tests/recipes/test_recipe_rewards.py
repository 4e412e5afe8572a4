"""Many rewards in one run on two processes, with a judge that sometimes hangs."""

import json
from pathlib import Path

import pytest
import yaml

SMOKE = Path(__file__).parent / "configs"
NAMES = ("ndcg_ips", "lift", "faithful", "valid_item", "length", "repetition", "cf", "judge")

pytestmark = pytest.mark.slow


def test_many_rewards_on_two_processes(launcher, tmp_path, fake_server, sentinel_key):
    config = (SMOKE / "rewards.yaml").read_text().replace("URL", fake_server.url)
    (tmp_path / "rewards.yaml").write_text(config.replace("JOURNAL", str(tmp_path / "journal")))
    longer = {"max_steps": 40, "eval_steps": 40, "save_steps": 40}  # or hardly a completion has a marker
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(yaml.safe_load((SMOKE / "sft.yaml").read_text()) | longer))
    fake_server.say = lambda prompt, seed: f"Well.\nSCORE: {len(prompt) % 11}"
    fake_server.plan = lambda key, number: "hang" if len(key[0]) % 13 == 0 else "ok"
    run = tmp_path / "run"
    flags = ("--config", tmp_path / "rewards.yaml", "--output_dir", run, "--use_cpu")
    output = launcher.finish("grpo_teacher", *flags, config="cpu_2.yaml")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "grpo" and "reward" in row]
    assert len(steps) == 3
    for row in steps:
        for name in NAMES:
            assert -1 <= row[f"rewards/{name}/mean"] <= 10
        assert 0 <= row["rewards/judge/timeouts"] <= 1
        assert row["probes/seconds"] > 0
        assert row["guard/length_ratio"] > 0
        assert 0 <= row["guard/flat_groups"] <= 1
    correlations = [row["rewards/corr/ndcg_ips~lift"] for row in steps if "rewards/corr/ndcg_ips~lift" in row]
    assert correlations
    assert all(-1 <= value <= 1 for value in correlations)
    assert [row["rewards/cf/weight"] for row in steps] == [0.5, 0.25, 0.0]
    assert any("guard/reward_gap" in row for row in rows)
    assert fake_server.bodies
    texts = [body["messages"][1]["content"] for _, _, body in fake_server.bodies]
    assert all(text.startswith("<history>\n") and text.endswith("</item>") for text in texts)
    assert "</history>\n<reasoning>" in texts[0]
    journalled = sum(len(path.read_text().splitlines()) for path in (tmp_path / "journal").glob("*.jsonl"))
    assert 0 < journalled <= len(texts)
    assert "Guard rails" in (run / "report.html").read_text()
    written = [
        path for path in run.rglob("*") if path.is_file() and path.suffix in (".yaml", ".json", ".jsonl", ".txt")
    ]
    assert all(sentinel_key not in path.read_text() for path in written)
    assert sentinel_key not in output
