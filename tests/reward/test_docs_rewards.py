"""What docs/rewards.md shows is what happens."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import yaml

from anyo_rl.stages.arguments import GrpoArguments
from anyo_rl.training.rewards.check import RewardError, guard
from anyo_rl.training.rewards.schedule import parse_schedules
from reward.load import SHORT_NAMES, load_reward, load_rewards
from reward.rank import RankReward

DOCS = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
BATCH = {
    "prompts": ["p"] * 3,
    "completion_ids": [[1]] * 3,
    "completions": ["a\nb ->", "a\nb\nc\nd\n->", [{"role": "assistant", "content": "a"}]],
    "steps": [["a", "b"], ["a", "b", "c", "d"], ["a"]],
    "rank": [2, 4, None],
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCS, flags=re.DOTALL)


@pytest.fixture
def my_reward(tmp_path):
    (tmp_path / "my_reward.py").write_text(blocks("python")[0], encoding="utf-8")
    return f"{tmp_path}/my_reward.py:my_reward"


def test_your_own_reward_works_as_it_is_printed(my_reward):
    # 1/2; 1/4 less one step beyond the third; no rank.
    assert guard(load_reward(my_reward))(**BATCH) == pytest.approx([0.5, 0.25 - 0.05, 0.0])
    cheap = load_reward({"name": my_reward, "kwargs": {"price_per_step": 0.01}})
    assert guard(cheap)(**BATCH) == pytest.approx([0.5, 0.25 - 0.01, 0.0])
    assert [reward.__name__ for reward in load_rewards([my_reward, "format"])] == ["my_reward", "format"]


def test_it_is_as_short_as_promised():
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 10


def test_the_yaml_loads():
    config = next(block for block in map(yaml.safe_load, blocks("yaml")) if "reward_weights" in block)
    rewards = load_rewards(config["reward_funcs"], config["reward_kwargs"])
    assert len(rewards) == len(config["reward_weights"])
    assert (rewards[0].floor, rewards[1].max_steps) == (-0.1, 6)


def test_every_yaml_is_of_rewards_and_settings_that_there_are(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2] / "reward")
    settings = {"scale_rewards", "reward_weights", *(field.name for field in dataclasses.fields(GrpoArguments))}
    for config in map(yaml.safe_load, blocks("yaml")):
        assert set(config) <= settings
        parameters = config.get("reward_kwargs", {})
        own = parameters.get("judge", {})
        if "prompt_file" in own:
            own["prompt_file"] = "judge.txt"
        names = [*config.get("reward_funcs", []), *parameters, *config.get("reward_schedules", {})]
        names = list(dict.fromkeys(names))
        assert len(load_rewards(names, parameters)) == len(names)
        parse_schedules(config.get("reward_schedules"), names)


def test_every_short_name_is_in_the_table():
    table = re.findall(r"^\| `([a-z_]+)(?:@\d+)?` \|", DOCS, flags=re.MULTILINE)
    assert set(SHORT_NAMES) <= set(table)


def test_the_numbers_in_the_text():
    for gain, printed in (("ndcg", [0.121, 0.116]), ("log", [0.174, 0.133])):
        assert RankReward(gain)(rank=[300, 400], n_items=1000) == pytest.approx(printed, abs=6e-4)
        assert all(f"{value:.3f}".lstrip("0") in DOCS for value in printed)
    assert math.isclose(RankReward()(rank=[3])[0], 0.5)


def test_the_errors_read_as_printed(my_reward):
    with pytest.raises(RewardError) as caught:
        guard(load_reward(my_reward))(**{**BATCH, "rank": [1, 0, 2]})
    printed = next(block for block in blocks("text") if "ZeroDivisionError" in block)
    # Each line of the message has its line in the docs, up to where the values differ.
    for line in ("reward 'my_reward' raised ZeroDivisionError: division by zero, on completion ", "  rank: 0"):
        assert line in str(caught.value)
        assert line in printed
    with pytest.raises(ValueError, match="unknown reward 'ndgc'") as wrong:
        load_reward("ndgc")
    assert str(wrong.value).split("; or a dotted path")[0] in DOCS
