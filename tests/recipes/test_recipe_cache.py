"""The recipe of the teacher cache as a user starts it: killed and shared it comes to the same files."""

import pytest

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.distill.cache import TeacherCache
from anyo_rl.stages.cache import CacheArguments, cache_of_scores

pytestmark = pytest.mark.slow

WORLD = {"toy_users": 1500, "mask_history": True}  # 6,000 histories in four shards


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_killed_and_shared_nothing_is_lost_or_twice(launcher, tmp_path):
    task = load_task(DataArguments(**WORLD))
    cache_of_scores(task, CacheArguments(output_dir=str(tmp_path / "calm"), n_folds=2, top_k=50), None, None)
    folder = tmp_path / "cache"
    flags = ("--toy_users", 1500, "--mask_history", "true", "--n_folds", 2, "--top_k", 50, "--output_dir", folder)
    launcher.start("cache_teacher", *flags).kill_when(lambda: any(folder.glob("shard-*.npy")))
    assert not (folder / "card.json").exists()
    both = [launcher.start("cache_teacher", *flags) for _ in range(2)]
    for one in both:
        assert one.wait().process.returncode == 0, one.output[-3000:]
        assert "histories of item_knn, 50 items each, temperature" in one.output
    assert files_of(folder) == files_of(tmp_path / "calm")
    found = TeacherCache.open(folder, task)
    assert len(set(zip(found.user_B, found.position_B, strict=True))) == len(found) == len(task.split("train"))


def test_a_run_s_teacher_by_its_own_settings(finished_run, launcher, tmp_path):
    flags = ("--source", "teacher", "--run_dir", finished_run.folder, "--stage", "sft", "--last_positions", 1)
    output = launcher.finish("cache_teacher", *flags, "--top_k", 5, "--output_dir", tmp_path / "cache")
    assert "histories of teacher, 5 items each, temperature 1;" in output
    assert f"cache: {tmp_path / 'cache'}" in output
