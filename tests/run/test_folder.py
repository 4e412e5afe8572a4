import dataclasses
import json
import platform
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml
from trl import GRPOConfig, ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.reasoning.rationales.filters import FilterArguments
from anyo_rl.run import folder as run_folder
from anyo_rl.run.folder import (
    WARM_START,
    RunFolderError,
    changed_data,
    check_same,
    free_settings,
    hold_together,
    read_arguments,
    resolve,
    start_run,
)
from anyo_rl.run.lock import hold
from anyo_rl.stages.agent_arguments import AgentArguments
from anyo_rl.stages.arguments import (
    GrpoArguments,
    PpoArguments,
    RankArguments,
    TeacherArguments,
)
from anyo_rl.stages.begin import plain_errors
from anyo_rl.stages.cache import CacheArguments
from anyo_rl.stages.distill_reasoning import DistillReasoningArguments
from anyo_rl.stages.dpo import PairArguments
from anyo_rl.stages.evidence import EvidenceArguments
from anyo_rl.stages.judge_arguments import JudgeArguments
from anyo_rl.stages.path_arguments import StarArguments
from anyo_rl.stages.prm import PrmArguments
from anyo_rl.stages.server_arguments import ServerArguments
from anyo_rl.stages.student_arguments import DistillArguments, StudentArguments

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


def test_a_setting_may_be_mended_until_something_comes_of_it(tmp_path):
    """A wrong one is often told by the first step, when the warm start has been trained for an hour."""

    def arguments(seed=0, warm_rate=1e-3, data=DATA, **changed):
        grpo = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, seed=seed, **changed)
        later = {name: replace(one, later=True) for name, one in resolve(REASONER, grpo).items()}
        return resolve(data, ModelConfig(), TEACHER, **later, **{WARM_START: {"learning_rate": warm_rate}})

    start_run(tmp_path, arguments(), {})
    for folder in ("sft/teacher", "catalog", "logs", "grpo"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("sft/teacher", "catalog", "logs"):
        (tmp_path / folder / "file").write_text("made")
    check_same(tmp_path, arguments(learning_rate=0.5, temperature=0.7))
    for wrong, named in (({"seed": 1}, "seed=0, now 1"), ({"warm_rate": 1.0}, "in the warm start")):
        with pytest.raises(RunFolderError, match=named):
            check_same(tmp_path, arguments(**wrong))
    with pytest.raises(RunFolderError, match="toy_users"):
        check_same(tmp_path, arguments(data=replace(DATA, toy_users=50)))
    start_run(tmp_path, arguments(learning_rate=0.5), {})
    assert read_arguments(tmp_path)["GRPOConfig"]["learning_rate"] == 0.5
    (tmp_path / "grpo" / "checkpoint-10").mkdir()
    (tmp_path / "grpo" / "checkpoint-10" / "trainer_state.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"learning_rate=0.5, now 0.25"):
        check_same(tmp_path, arguments(learning_rate=0.25))


def test_secrets_are_not_written_and_another_one_is_no_difference(tmp_path):
    def with_key(key: str) -> GrpoArguments:
        return replace(REASONER, reward_kwargs={"judge": {"api_key": key, "model": "m"}})

    start_run(tmp_path, resolve(with_key("sentinel")), {})
    assert "sentinel" not in (tmp_path / "config.yaml").read_text()
    assert read_arguments(tmp_path)["GrpoArguments"]["reward_kwargs"]["judge"]["model"] == "m"
    check_same(tmp_path, resolve(with_key("other")))


def test_secrets_that_their_form_tells_are_not_written(tmp_path):
    names = ("passwd", "bearer", "private_key_pem", "X-Api-Key", "credentials")
    arguments = resolve(
        replace(REASONER, reward_kwargs={"mine.py:reward": dict.fromkeys(names, "sentinel") | {"n": 2}}),
        JudgeArguments(judge='{"url": "http://localhost:1/v1", "model": "m", "api_key": "sentinel"}'),
        GRPOConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            vllm_server_base_url="http://u:sentinel@host:8000",
        ),
    )
    start_run(tmp_path, arguments, {})
    assert "sentinel" not in (tmp_path / "config.yaml").read_text()
    found = read_arguments(tmp_path)
    assert found["GrpoArguments"]["reward_kwargs"]["mine.py:reward"]["n"] == 2
    assert json.loads(found["JudgeArguments"]["judge"])["model"] == "m"
    assert found["GRPOConfig"]["vllm_server_base_url"] == "http://<redacted>@host:8000"
    check_same(tmp_path, arguments)
    # A folder of an older version has them in clear: that is no difference, and they are not shown.
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("<redacted>", "sentinel"))
    check_same(tmp_path, arguments)


FREE = {
    DataArguments: {"data_dir", "max_test"},
    TeacherArguments: {"sampling_tokens", "n_paths", "baselines_from", "written", "causal_examples"},
    RankArguments: set(),
    GrpoArguments: {"sft_config", "train_direct", "baselines"},
    PpoArguments: {"sft_config", "train_direct", "baselines"},
    StarArguments: {"sft_config", "train_direct", "baselines", "n_samples", "max_examples"},
    DistillReasoningArguments: {"sft_config", "train_direct", "baselines"},
    PrmArguments: {"max_examples", "judge"},
    PairArguments: {"baselines"},
    CacheArguments: {"output_dir", "plan"},
    EvidenceArguments: {"output_dir", "training_scores", "baselines_from"},
    StudentArguments: {"output_dir", "beside", "fewer_thoughts"},
    DistillArguments: set(),
    AgentArguments: {"train_no_tools"},
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


def test_other_data_are_refused_in_one_line(tmp_path):
    before = {"items": "a", "events": "b"}
    start_run(tmp_path, resolve(DATA), {}, before)
    start_run(tmp_path, resolve(DATA), {}, before)
    assert changed_data(tmp_path, {"items": "c", "events": "b"}) == ["items"]
    with pytest.raises(RunFolderError) as refused:
        start_run(tmp_path, resolve(DATA), {}, {"items": "c", "events": "d"})
    assert str(refused.value) == (
        f"{tmp_path} was made from other data: items, events changed since. Put the data back as it was, name another "
        "--output_dir, or remove the folder"
    )
    assert json.loads((tmp_path / "fingerprint.json").read_text()) == before
    assert changed_data(tmp_path / "elsewhere", before) == []


HOLDS = """
import sys
from pathlib import Path
from anyo_rl.run.lock import hold
print(hold(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_a_folder_has_one_program_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "None\n"
        expected = f"{folder} is in use by process {other.pid} on {platform.node()}: wait until it ends"
        assert hold(folder).startswith(expected)
        with pytest.raises(RunFolderError, match="is in use by process"):
            hold_together(folder, patience_s=0)
        other.kill()
        assert hold(folder, patience_s=30) is None  # it may take a moment to end
    assert hold(folder) is None  # what this process holds already is its own


def test_a_worker_does_not_hold_the_folder_after_its_program(tmp_path):
    program = (
        "import os, sys, time; from pathlib import Path; from anyo_rl.run.lock import hold; hold(Path(sys.argv[1]))\n"
        "if not os.fork(): time.sleep(30)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    assert hold(tmp_path) is None


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    assert hold(tmp_path / "file").startswith(f"{tmp_path / 'file'} cannot be written (")
