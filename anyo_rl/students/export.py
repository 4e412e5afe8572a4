"""A student for servers without this package: as a program of `torch.export`, and as ONNX.

Both take histories as item numbers, padded on the left with N, and give the scores of all N items as the next one:

    items (B, T) int64, T at most `max_length`  ->  scores (B, N) float32

`served.json` beside them says what the numbers are: the id of each item, the padding, the longest history.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from anyo_rl.run.files import write_whole
from anyo_rl.run.settings import UsageError
from anyo_rl.students.files import Student
from anyo_rl.students.sasrec import SASRec
from anyo_rl.students.training import last_states, pad_left

PROGRAM, ONNX, CARD = "student.pt2", "student.onnx", "served.json"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MOST_ROWS = 4096  # of one request


class Served(nn.Module):
    """What is exported: the scores after the last item of each history."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, items_B_T: Tensor) -> Tensor:
        """Scores (B, N) of histories that are padded on the left."""
        return self.student.item_logits(last_states(self.student, items_B_T))


def export_student(student: Student, item_ids: Sequence[str], folder: Path, *, onnx: bool = True) -> None:
    """Writes `student.pt2`, `student.onnx` if asked for, and `served.json`, which comes last.

    SASRec takes histories of any length up to its longest; a GRU's program is of one length, which is that.

    Args:
        student: in eval mode, on the CPU.
        item_ids: of its items.
        folder: made if it is not there.
        onnx: whether to write ONNX too.

    Raises:
        UsageError: what ONNX takes is not installed.
    """
    if onnx and (missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]):
        raise UsageError(
            f"{', '.join(missing)} not installed: pip install 'anyo-rl[export]', or export without ONNX (--onnx false)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    any_length = isinstance(student, SASRec)
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    length = torch.export.Dim("length", min=1, max=student.max_length)
    # An example of two rows, one of them padded: of one row torch would make a program for one row.
    example_B_T = torch.zeros(2, student.max_length, dtype=torch.long)
    example_B_T[0, :-1] = student.n_items
    shapes = ({0: rows, 1: length} if any_length else {0: rows},)
    served = Served(student).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch itself still calls by an old name
        program = torch.export.export(served, (example_B_T,), dynamic_shapes=shapes)
        torch.export.save(program, folder / PROGRAM)
        if onnx:
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names operators that are not installed
            torch.onnx.export(
                served,
                (example_B_T,),
                folder / ONNX,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["items"],
                output_names=["scores"],
                external_data=False,
                verbose=False,
            )
    card = {
        "item_ids": list(item_ids),
        "padding": student.n_items,
        "max_length": student.max_length,
        "any_length": any_length,
    }
    write_whole(folder / CARD, json.dumps(card))


def requests(histories: Sequence[Sequence[int]], student: Student) -> Tensor:
    """Histories as an exported student takes them: (B, T), padded on the left to the length that it takes."""
    if isinstance(student, SASRec):
        return pad_left(histories, student.n_items, student.max_length)
    # A history of full length beside them makes all of them as long.
    full = [0] * student.max_length
    return pad_left([*histories, full], student.n_items, student.max_length)[:-1]
