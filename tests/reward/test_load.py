import pickle
import re
import subprocess
import sys
import textwrap

import pytest

from reward.format import FormatReward
from reward.load import load_reward, load_rewards
from reward.rank import RankReward

MY_REWARD = """
    class Bonus:
        def __init__(self, threshold, bonus=1.0):
            self.threshold, self.bonus = threshold, bonus
            self.__name__ = "bonus"

        def __call__(self, rank, **kwargs):
            return [self.bonus if r is not None and r <= self.threshold else 0.0 for r in rank]


    def my_reward(rank, scale=1.0, **kwargs):
        return [None if r is None else scale / r for r in rank]


    NOT_CALLABLE = 3


    class NoCall:
        pass
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(MY_REWARD))
    return path


@pytest.mark.parametrize(
    ("spec", "name", "expected"),
    [
        ("ndcg", "ndcg", [1.0, 0.5]),
        ("mrr", "mrr", [1.0, 1 / 3]),
        ("hit@2", "hit@2", [1.0, 0.0]),
        ("ndcg@2", "ndcg@2", [1.0, 0.0]),
        ("log", "log", [1.0, 0.5]),
        ({"name": "hit", "kwargs": {"k": 3}}, "hit@3", [1.0, 1.0]),
        ("reward.rank.RankReward", "ndcg", [1.0, 0.5]),
        ("reward.rank:RankReward", "ndcg", [1.0, 0.5]),
    ],
)
def test_names(spec, name, expected):
    reward = load_reward(spec)
    assert reward.__name__ == name
    assert reward(rank=[1, 3], n_items=[9, 9]) == pytest.approx(expected)


def test_format_by_name_and_by_parameters():
    assert isinstance(load_reward("format"), FormatReward)
    assert load_reward({"name": "format", "kwargs": {"min_steps": 3}}).min_steps == 3


def test_a_file_from_anywhere(file):
    reward = load_reward(f"{file}:my_reward")
    assert reward.__name__ == "my_reward"
    assert reward(rank=[1, 4, None]) == [1.0, 0.25, None]
    assert pickle.loads(pickle.dumps(reward)) is reward
    assert load_reward(f"{file}:my_reward") is reward  # the file is run once


def test_function_with_parameters_keeps_its_name_and_pickles(file):
    reward = load_reward({"name": f"{file}:my_reward", "kwargs": {"scale": 2.0}})
    assert reward.__name__ == "my_reward"
    assert pickle.loads(pickle.dumps(reward))(rank=[4]) == [0.5]


def test_class_is_instantiated(file):
    reward = load_reward({"name": f"{file}:Bonus", "kwargs": {"threshold": 2}})
    assert reward.__name__ == "bonus"
    assert reward(rank=[1, 2, 3, None]) == [1.0, 1.0, 0.0, 0.0]


def test_a_module_in_the_current_folder(file, monkeypatch):
    (file.parent / "only_here_rewards.py").write_text("def one(completions, **kwargs):\n    return [1.0]\n")
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_reward("only_here_rewards.one")(completions=["c"]) == [1.0]


def test_load_rewards_keeps_the_order_and_hands_out_parameters(file):
    mine = f"{file}:Bonus"
    rewards = load_rewards(["hit@10", mine, "format"], {mine: {"threshold": 1}, "format": {"min_steps": 2}})
    assert [reward.__name__ for reward in rewards] == ["hit@10", "bonus", "format"]
    assert rewards[2].min_steps == 2
    assert load_rewards([]) == []
    assert isinstance(load_rewards(["ndcg"], {"ndcg": {"k": 5}})[0], RankReward)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ndgc", "unknown reward 'ndgc': known are ndcg, mrr, hit, log, format, "),
        ("", "unknown reward ''"),
        ("format@3", "unknown reward 'format@3'"),
        ("hit", "needs a cut-off"),
        ("hit@0", "the cut-off after '@' must be a whole number of 1 or more"),
        ("hit@ten", "the cut-off after '@'"),
        ("hit@", "the cut-off after '@'"),
        ("reward.rank.RankRewards", "reward.rank has no 'RankRewards'; known are"),
        ("reward.rnk.RankReward", "there is no module 'reward.rnk'"),
        ("no_such_package.fn", "there is no module 'no_such_package'"),
        ("FILE", "names a file but nothing in it"),
        ("FILE:", "is not complete"),
        ("FILE:my_rewrd", "has no 'my_rewrd'; known are Bonus, my_reward, NoCall (did you mean 'my_reward'"),
        ("FILE:NOT_CALLABLE", "is a int, expected a function or a class"),
        ("FILE:NoCall", "is a class without __call__"),
        ("FILE:Bonus", "needs threshold"),
        ({"name": "FILE:Bonus", "kwargs": {"treshold": 1}}, "has no parameter 'treshold': known are threshold, bonus"),
        ({"name": "FILE:my_reward", "kwargs": {"scal": 1}}, "has no parameter 'scal'"),
        ({"name": "FILE:my_reward", "kwargs": {"rank": 1}}, "each batch brings a column of that name"),
        ({"name": "ndcg", "kwargs": {"gain": "mrr"}}, "sets gain by its name"),
        ({"name": "hit@3", "kwargs": {"k": 4}}, "sets k by its name"),
        ({"name": "format", "kwargs": {"min_step": 4}}, "(did you mean 'min_steps'"),
        ({"nam": "ndcg"}, "a reward is a name or {name: ..., kwargs: {...}}"),
    ],
)
def test_clear_errors(file, spec, message):
    def put(text):
        return text.replace("FILE", str(file))

    spec = put(spec) if isinstance(spec, str) else {k: put(v) if isinstance(v, str) else v for k, v in spec.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        load_reward(spec)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.py"):
        load_reward(f"{tmp_path}/gone.py:my_reward")


def test_an_error_inside_the_file_is_shown_as_it_is(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_thing_at_all\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_thing_at_all") as caught:
        load_reward(f"{path}:my_reward")
    assert "while loading reward" in caught.value.__notes__[0]
    path.write_text("def my_reward(**kwargs): return []\n")  # mended: a broken load leaves nothing behind
    assert load_reward(f"{path}:my_reward")() == []


@pytest.mark.parametrize("code", ["0", "", "'bye'"])
def test_one_that_exits_while_it_is_loaded_is_an_error(tmp_path, monkeypatch, code):
    (tmp_path / "script_rewards.py").write_text(
        f"import sys\ndef mine(**kwargs):\n    return []\nprint(mine())\nsys.exit({code})\n"
    )
    (tmp_path / "maker_rewards.py").write_text(
        f"import sys\nclass Mine:\n    def __init__(self):\n        sys.exit({code})\n    def __call__(self): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("script_rewards.py:mine", "script_rewards.mine", "maker_rewards.py:Mine"):
        with pytest.raises(ValueError, match=rf"reward '{name}' called sys.exit\(.*\) while it was loaded"):
            load_reward(name)
    assert not [name for name in sys.modules if "script_rewards" in name]


def test_load_rewards_errors(file):
    with pytest.raises(ValueError, match=r"reward_kwargs has 'formt', which is not among reward_funcs.*'format'"):
        load_rewards(["format"], {"formt": {}})
    with pytest.raises(ValueError, match=r"reward_kwargs of 'format' is 3, expected a mapping"):
        load_rewards(["format"], {"format": 3})
    assert load_rewards(["format"], {"format": None})[0].min_steps == 1
    with pytest.raises(ValueError, match=r"both called 'ndcg', and their metrics would be mixed"):
        load_rewards(["ndcg", "reward.rank.RankReward"])


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, reward.load; print([m for m in ('torch', 'reward.rank', 'trl') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
