"""A student in a folder: its weights, its settings, and the items that it scores, in their order."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from anyo_rl.run.settings import UsageError
from anyo_rl.students.gru4rec import GRU4Rec
from anyo_rl.students.sasrec import SASRec
from anyo_rl.students.thoughts import ThinkingSASRec

Student = SASRec | GRU4Rec
KINDS: dict[str, type[SASRec] | type[GRU4Rec]] = {
    "SASRec": SASRec,
    "ThinkingSASRec": ThinkingSASRec,
    "GRU4Rec": GRU4Rec,
}


def save_student(student: Student, item_ids: Sequence[str], folder: Path) -> None:
    """Writes `student.safetensors` and `student.json`, which comes last.

    Args:
        student: a fitted student.
        item_ids: ids of its items 0..N-1.
        folder: made if it is not there.
    """
    if len(item_ids) != student.n_items:
        raise UsageError(f"found {len(item_ids)} item ids for a student of {student.n_items} items")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in student.state_dict().items()}, folder / "student.safetensors"
    )
    described = {"kind": type(student).__name__, "settings": student.settings, "item_ids": list(item_ids)}
    (folder / "student.json").write_text(json.dumps(described), encoding="utf-8")


def load_student(folder: Path, item_ids: Sequence[str], n_thoughts: int | None = None) -> Student:
    """The student of a folder, in eval mode.

    Args:
        folder: written by `save_student`.
        item_ids: ids of the catalog that it is to score, in the order of its indices.
        n_thoughts: how many thoughts it takes, as many as it was trained with or fewer; `None` for as many.

    Raises:
        FileNotFoundError: there is no student.
        UsageError: it was trained with fewer thoughts, or without.
        ValueError: it is of an unknown kind, or was fitted on other items.
    """
    file = folder / "student.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"no student in {folder}: expected student.json and student.safetensors (save_student)"
        )
    described = json.loads(file.read_text(encoding="utf-8"))
    if described["kind"] not in KINDS:
        raise UsageError(f"the student in {folder} is a {described['kind']!r}, expected one of {', '.join(KINDS)}")
    if described["item_ids"] != list(item_ids):
        raise UsageError(
            f"the student in {folder} scores {len(described['item_ids'])} items, and they are not the {len(item_ids)} "
            f"of the catalog in their order: fit it on this data"
        )
    student = KINDS[described["kind"]](**described["settings"])
    student.load_state_dict(load_file(folder / "student.safetensors"))
    if n_thoughts is not None:
        if not isinstance(student, ThinkingSASRec):
            raise UsageError(f"the student in {folder} was trained without thoughts: leave n_thoughts out")
        student.think(n_thoughts)
    return student.eval()
