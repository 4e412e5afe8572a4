import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.reasoning.rationales.filters import FilterArguments
from anyo_rl.run import folder as run_folder
from anyo_rl.run.folder import (
    WARM_START,
    RunFolderError,
    check_same,
    free_settings,
    read_arguments,
    resolve,
    start_run,
)
from anyo_rl.stages.arguments import (
    GrpoArguments,
    PpoArguments,
    PrmArguments,
    RankArguments,
    StarArguments,
    TeacherArguments,
)
from anyo_rl.stages.begin import plain_errors
from anyo_rl.stages.dpo import PairArguments
from anyo_rl.stages.server_arguments import ServerArguments

DATA, TEACHER, REASONER = DataArguments(), TeacherArguments(), GrpoArguments()


def settings(folder: Path, **changed) -> SFTConfig:
    return SFTConfig(**{"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none"} | changed)


@pytest.fixture
def run(tmp_path):
    """A folder that was made with the defaults."""
    start_run(tmp_path, resolve(DATA, ModelConfig(), TEACHER, REASONER, settings(tmp_path)), {"n_users": 5})
    return tmp_path


def test_the_folder_holds_arguments_versions_and_counts(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config == read_arguments(run)
    assert config["DataArguments"]["dataset"] == "toy"
    assert config["SFTConfig"]["learning_rate"] == settings(run).learning_rate
    versions = json.loads((run / "versions.json").read_text())
    assert (versions["num_processes"], versions["distributed_type"]) == (1, "NO")
    assert json.loads((run / "data.json").read_text()) == {"n_users": 5}
    assert not list(run.glob("*.partial"))


def test_what_only_says_how_to_run_may_change(run):
    trainer = settings(run, disable_tqdm=True, logging_steps=3, report_to=["tensorboard"], output_dir="elsewhere")
    again = resolve(
        replace(DATA, max_test=3),
        ModelConfig(),
        replace(TEACHER, n_paths=2),
        replace(REASONER, baselines=False, train_direct=False),
        trainer,
    )
    start_run(run, again, {"n_users": 5})
    assert read_arguments(run)["TeacherArguments"]["n_paths"] == 2


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        ((replace(DATA, toy_users=9),), f"toy_users={DATA.toy_users}, now 9"),
        ((replace(TEACHER, tiny_layers=1),), "tiny_layers=4, now 1"),
        ((ModelConfig(use_peft=True),), "use_peft=False, now True"),
        ((replace(REASONER, reward_funcs=["my_reward"]),), "reward_funcs=['ndcg'], now ['my_reward']"),
    ],
)
def test_what_changes_the_training_is_refused_by_name(run, arguments, difference):
    before = (run / "config.yaml").read_text()
    with pytest.raises(RunFolderError) as refused:
        start_run(run, resolve(DATA, ModelConfig(), TEACHER, REASONER, settings(run)) | resolve(*arguments), {})
    first, last = str(refused.value).splitlines()
    assert first == f"{run} was made with {difference}"
    assert last == "name another --output_dir, or remove the folder"
    assert (run / "config.yaml").read_text() == before
    with pytest.raises(SystemExit, match="name another --output_dir"), plain_errors():
        raise refused.value


def test_one_line_for_each_difference(run):
    both = resolve(replace(DATA, toy_users=9), ModelConfig(), TEACHER, REASONER, settings(run, seed=1, max_steps=7))
    with pytest.raises(RunFolderError) as refused:
        check_same(run, both)
    assert len(str(refused.value).splitlines()) == 4
    assert "seed=42, now 1" in str(refused.value)
    assert "max_steps=-1, now 7" in str(refused.value)


def test_paths_of_a_mixture_count_where_it_validates(tmp_path):
    mixture = replace(TEACHER, eval_mode="mixture")
    start_run(tmp_path, resolve(mixture), {})
    with pytest.raises(RunFolderError, match="n_paths=8, now 2"):
        check_same(tmp_path, resolve(replace(mixture, n_paths=2)))


def test_the_warm_start_counts_too(run):
    plain = resolve(DATA, ModelConfig(), TEACHER, REASONER, settings(run))
    warm = {**settings(run, max_steps=5).to_dict(), "early_stopping_patience": 4}
    with pytest.raises(RunFolderError, match="was made without WarmStart"):
        check_same(run, plain | resolve(**{WARM_START: warm}))
    start_run(run / "b", plain | resolve(**{WARM_START: warm}), {})
    assert read_arguments(run / "b")[WARM_START]["early_stopping_patience"] == 4
    with pytest.raises(RunFolderError, match="early_stopping_patience=4, now 3 in the warm start"):
        check_same(run / "b", plain | resolve(**{WARM_START: warm | {"early_stopping_patience": 3}}))


def test_secrets_are_not_written_and_another_one_is_no_difference(tmp_path):
    def with_key(key: str) -> GrpoArguments:
        return replace(REASONER, reward_kwargs={"judge": {"api_key": key, "model": "m"}})

    start_run(tmp_path, resolve(with_key("sentinel")), {})
    assert "sentinel" not in (tmp_path / "config.yaml").read_text()
    assert read_arguments(tmp_path)["GrpoArguments"]["reward_kwargs"]["judge"]["model"] == "m"
    check_same(tmp_path, resolve(with_key("other")))


FREE = {
    DataArguments: {"data_dir", "max_test"},
    TeacherArguments: {"n_paths", "baselines_from"},
    RankArguments: set(),
    GrpoArguments: {"sft_config", "train_direct", "baselines"},
    PpoArguments: {"sft_config", "train_direct", "baselines"},
    StarArguments: {"sft_config", "train_direct", "baselines", "n_samples", "max_examples"},
    PrmArguments: {"max_examples", "judge"},
    PairArguments: {"baselines"},
    FilterArguments: {"fewest_steps", "most_steps", "fewest_words", "most_words", "leak_words", "copied_words"},
    ServerArguments: {field.name for field in dataclasses.fields(ServerArguments)} - {"model", "parameters", "seed"},
}


@pytest.mark.parametrize("kind", FREE, ids=lambda kind: kind.__name__)
def test_what_may_change_stands_with_its_field(kind):
    assert free_settings(kind()) == FREE[kind]


def test_a_field_that_is_named_like_a_free_one_elsewhere_is_not_free_by_that():
    @dataclass
    class Other:
        n_paths: int = 1
        baselines: bool = field(default=True, metadata={"free": True})

    section = resolve(Other())["Other"]
    assert [section.is_free(name) for name in ("n_paths", "baselines", "logging_steps")] == [False, True, True]


def test_a_folder_that_is_no_run_says_so(tmp_path):
    with pytest.raises(RunFolderError, match=r"found no .*config\.yaml: expected the folder of a run"):
        read_arguments(tmp_path)
    check_same(tmp_path, resolve(DATA))


def test_a_folder_that_the_machines_do_not_share_is_refused(tmp_path: Path):
    with pytest.raises(RunFolderError, match=r"does not see it after 0 s: --output_dir has to be on a file system"):
        run_folder._wait_for(tmp_path / "config.yaml", patience_s=0)
