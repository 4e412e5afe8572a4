"""Exports a student for a server without this package: by torch.export, and as ONNX.

    python recipes/export_student.py --student runs/toy/student/seed-0/student --output_dir runs/toy/served

It says how far the exported programs' scores are from the student's own on random histories (docs/students.md).
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from anyo_rl.run.files import read_json
from anyo_rl.run.settings import Bounds, UsageError
from anyo_rl.stages.begin import begin, plain_errors
from anyo_rl.students.export import ONNX, PROGRAM, export_student, requests
from anyo_rl.students.files import Student, load_student


@dataclass
class ExportArguments:
    """Which student, and where to."""

    student: str = field(
        default="runs/toy/student/seed-0/student", metadata={"help": "Folder with student.json and its weights."}
    )
    output_dir: str = field(default="runs/toy/served", metadata={"help": "Where to; what is there is written anew."})
    n_thoughts: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(0),
            "help": "Thoughts that it takes, fewer than it was trained with; null for all.",
        },
    )
    onnx: bool = field(default=True, metadata={"help": "Also write ONNX, which takes the extra `export`."})


@plain_errors(FileNotFoundError)
def main() -> None:
    """Load; export; compare."""
    args, _ = begin((ExportArguments,), on_cpu=True)
    file = Path(args.student) / "student.json"
    if not file.is_file():
        raise UsageError(f"found no {file}: expected the folder of a student (recipes/train_student.py)")
    item_ids = read_json(file)["item_ids"]
    student, folder = load_student(file.parent, item_ids, args.n_thoughts), Path(args.output_dir)
    export_student(student, item_ids, folder, onnx=args.onnx)
    for name, furthest in compare(student, folder, args.onnx).items():
        print(f"{folder / name}: scores at most {furthest:.1e} from the student's own")


def compare(student: Student, folder: Path, onnx: bool) -> dict[str, float]:
    """The largest difference of scores of random histories, of each exported program."""
    generator = torch.Generator().manual_seed(0)
    lengths = [0, 1, 2, student.max_length, student.max_length + 3]
    histories = [torch.randint(student.n_items, (length,), generator=generator).tolist() for length in lengths]
    asked_B_T, own_B_N = requests(histories, student), student.scores(histories)
    program = torch.export.load(folder / PROGRAM).module()
    with torch.inference_mode():
        found = {PROGRAM: float((program(asked_B_T) - own_B_N).abs().max())}
    if onnx:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
        (scores_B_N,) = session.run(None, {"items": asked_B_T.numpy()})
        found[ONNX] = float((torch.from_numpy(scores_B_N) - own_B_N).abs().max())
    return found


if __name__ == "__main__":
    main()
