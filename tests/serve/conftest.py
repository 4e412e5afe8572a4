"""A run folder with a teacher that nobody trained, and a student of the same items: small, and made once."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from trl import GRPOConfig, ModelConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.run.files import write_whole
from anyo_rl.run.folder import CONFIG, FINGERPRINT, resolve
from anyo_rl.serve.recommender import Recommender
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.students.files import save_student
from anyo_rl.students.sasrec import SASRec
from anyo_rl.teacher.save import save_teacher

if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client")):
    collect_ignore = ["test_service.py", "test_page.py"]  # they need the extra `serve`

DATA = DataArguments(toy_users=40, toy_categories=3, rationale_share=0.5, max_test=8)
TEACHER_ARGS = TeacherArguments(tiny_hidden_size=32, tiny_layers=2, max_reasoning_tokens=8, n_paths=3)


def make_run(folder: Path, data: DataArguments = DATA, stages: tuple[str, ...] = ("grpo",)) -> Path:
    """A run folder as a training recipe leaves it, with a student in it."""
    task = load_task(data)
    trainer = GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, seed=7)
    arguments = resolve(data, ModelConfig(dtype="float32"), TEACHER_ARGS, trainer)
    settings = {name: dict(section.settings) for name, section in arguments.items()}
    folder.mkdir(parents=True)
    write_whole(folder / CONFIG, yaml.safe_dump(settings))
    write_whole(folder / FINGERPRINT, json.dumps(dict(task.fingerprint)))
    job = Job(folder, task, ModelConfig(dtype="float32"), TEACHER_ARGS, seed=7)
    for stage in stages:
        made = job.opening.load(None)
        with torch.no_grad():
            for parameter in made.model.parameters():
                parameter.mul_(3)  # answers far from uniform
        (folder / stage).mkdir()
        save_teacher(made.model, made.tokens.tokenizer, job.teacher_folder(stage))
    item_ids = task.interactions.items["item_id"].to_list()
    student = SASRec(len(item_ids), dim=8).eval()
    save_student(student, item_ids, folder / "student" / "seed-0" / "student")
    write_whole(folder / "student" / CONFIG, yaml.safe_dump({"DataArguments": settings["DataArguments"]}))
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder."""
    return make_run(tmp_path_factory.mktemp("serve") / "run")


@pytest.fixture(scope="session")
def masked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose rankings leave out what users had chosen; its teachers see few events, or none."""
    data = dataclasses.replace(DATA, mask_history=True, max_history=5, history_tokens=30, min_history=0)
    return make_run(tmp_path_factory.mktemp("serve") / "masked", data)


@pytest.fixture(scope="session")
def open_folder() -> Callable[[Path], Recommender]:
    """Opens a folder, once for all tests."""
    opened: dict[Path, Recommender] = {}

    def open_once(folder: Path) -> Recommender:
        if folder not in opened:
            opened[folder] = Recommender.from_pretrained(folder)
        return opened[folder]

    return open_once


@pytest.fixture
def teacher(run_folder: Path, open_folder: Callable[[Path], Recommender]) -> Recommender:
    """The run's teacher."""
    return open_folder(run_folder)


@pytest.fixture
def student(run_folder: Path, open_folder: Callable[[Path], Recommender]) -> Recommender:
    """The run's student."""
    return open_folder(run_folder / "student")
