"""An exported student scores as it does here, whatever the number of histories and their lengths."""

import json

import pytest
import torch

from anyo_rl.run.settings import UsageError
from anyo_rl.students import GRU4Rec, SASRec, export
from anyo_rl.students.export import export_student, requests

HISTORIES = [[3], [], [1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 0], list(range(20))]
IDS = [f"i{item}" for item in range(20)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SASRec, GRU4Rec])
def test_the_program_scores_as_the_student(kind, tmp_path):
    student = kind(20, dim=8, max_length=8, seed=0).eval()
    export_student(student, IDS, tmp_path, onnx=False)
    program = torch.export.load(tmp_path / "student.pt2").module()
    for histories in (HISTORIES, HISTORIES[:1], HISTORIES[2:4]):
        torch.testing.assert_close(program(requests(histories, student)), student.scores(histories), atol=1e-5, rtol=0)
    card = json.loads((tmp_path / "served.json").read_text())
    assert card == {"item_ids": IDS, "padding": 20, "max_length": 8, "any_length": kind is SASRec}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SASRec, GRU4Rec])
def test_onnx_scores_as_the_student(kind, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    student = kind(20, dim=8, max_length=8, seed=0).eval()
    export_student(student, IDS, tmp_path)
    session = runtime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    for histories in (HISTORIES, HISTORIES[:1]):
        (found,) = session.run(None, {"items": requests(histories, student).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), student.scores(histories), atol=1e-4, rtol=0)


def test_what_is_not_installed_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("onnx_of_nobody",))
    with pytest.raises(UsageError, match="onnx_of_nobody not installed: pip install 'anyo-rl\\[export\\]'"):
        export_student(SASRec(5, dim=4), IDS[:5], tmp_path)
    assert not list(tmp_path.iterdir())
