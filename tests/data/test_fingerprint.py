"""What counts as other data."""

from pathlib import Path

import pytest

from anyo_rl.data.task import DataArguments, load_task

EVENTS = [(user, f"i{(user + step) % 7}", 100 * user + step) for user in range(6) for step in range(5)]


def data_of(folder: Path, events: list[tuple], titles: dict[str, str], **settings: object) -> dict[str, str]:
    folder.mkdir()
    lines = [f"u{user},{item},{time}" for user, item, time in events]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    rows = [f"{item},{title}" for item, title in titles.items()]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *rows]) + "\n")
    return load_task(
        DataArguments(
            dataset=str(folder / "log.csv"),
            items_path=str(folder / "items.csv"),
            split="leave_one_out",
            rationale_attributes=["title"],
            **settings,
        )
    ).fingerprint


TITLES = {f"i{n}": f"Item number {n}" for n in range(7)}
SHIFTED = dict(zip(TITLES, [*list(TITLES.values())[1:], TITLES["i0"]], strict=True))


def test_the_same_data_elsewhere_have_the_same_fingerprint(tmp_path):
    assert data_of(tmp_path / "a", EVENTS, TITLES) == data_of(tmp_path / "b", EVENTS, TITLES)


@pytest.mark.parametrize(
    ("events", "titles", "settings", "changed"),
    [
        (EVENTS, SHIFTED, {}, {"items"}),
        (EVENTS[:-1], TITLES, {}, {"events", "targets", "histories"}),
        ([*EVENTS[:-1], (5, "i0", EVENTS[-1][2])], TITLES, {}, {"events", "targets"}),
        (EVENTS, TITLES, {"max_history": 2}, {"histories"}),
    ],
)
def test_what_differs_is_told_by_its_name(tmp_path, events, titles, settings, changed):
    before = data_of(tmp_path / "a", EVENTS, TITLES)
    after = data_of(tmp_path / "b", events, titles, **settings)
    assert {name for name in before if before[name] != after[name]} - {"rationales"} == changed
