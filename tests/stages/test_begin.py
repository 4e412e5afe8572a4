"""A run folder belongs to its data: what a stage was trained on and answers were given to must not change unseen."""

import pytest
from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.run.folder import RunFolderError
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.arguments import GrpoArguments, TeacherArguments
from anyo_rl.stages.begin import plain_errors, start_job

TITLES = [f"Item number {n}" for n in range(7)]


def write(folder, titles, last="i1"):
    events = [(user, f"i{(user + step) % 7}", 100 * user + step) for user in range(6) for step in range(5)]
    events[-1] = (5, last, events[-1][2])
    lines = [f"u{user},{item},{time}" for user, item, time in events]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines, ""]))
    (folder / "items.csv").write_text("\n".join(["item_id,title", *(f"i{n},{t}" for n, t in enumerate(titles)), ""]))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"titles": TITLES[1:] + TITLES[:1]}, "items changed since"),
        ({"titles": TITLES, "last": "i0"}, "events, targets changed since"),
    ],
)
def test_a_log_or_titles_that_changed_are_refused(tmp_path, changed, told):
    def start():
        data = DataArguments(
            dataset=str(tmp_path / "log.csv"),
            items_path=str(tmp_path / "items.csv"),
            split="leave_one_out",
            rationale_share=0.0,
        )
        run = str(tmp_path / "run")
        training = SFTConfig(output_dir=run, use_cpu=True, bf16=False, report_to="none")
        return start_job(data, ModelConfig(), TeacherArguments(), training)

    write(tmp_path, TITLES)
    start()
    start()
    write(tmp_path, **changed)
    with pytest.raises(RunFolderError, match=told):
        start()
    with pytest.raises(SystemExit, match=r"error: .*was made from other data"), plain_errors():
        start()
    write(tmp_path, TITLES)
    start()


def test_that_reinforcement_has_no_example_is_told_before_a_warm_start(tmp_path):
    training = SFTConfig(output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, report_to="none")
    data = DataArguments(toy_users=20, toy_categories=4, rationale_share=1.0)
    told = (data, ModelConfig(), TeacherArguments(), training, GrpoArguments(held_out_of_sft=True))
    with pytest.raises(UsageError, match="held_out_of_sft leaves those out"):
        start_job(*told)
    assert not (tmp_path / "run").exists()
