"""How long a student takes for one request.

A request is one history, the answer the scores of the whole catalog: by the student here (`ours`, p50 and p95), by its
torch.export program and by onnxruntime where that is installed (`peer`). Weights are drawn: they change no time.

python benchmarks/student_latency.py --items 3459 --length 50
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from report import report

from anyo_rl.students import GRU4Rec, SASRec
from anyo_rl.students.export import ONNX, ONNX_PACKAGES, PROGRAM, export_student, requests


def latencies_ms(ask: Callable[[list[int]], object], histories: list[list[int]]) -> tuple[float, float]:
    """p50 and p95 in milliseconds over the histories, one after the other; a tenth of them beforehand, untimed."""
    for history in histories[: max(1, len(histories) // 10)]:
        ask(history)
    spent = []
    for history in histories:
        start = time.perf_counter()
        ask(history)
        spent.append(1e3 * (time.perf_counter() - start))
    return float(np.quantile(spent, 0.5)), float(np.quantile(spent, 0.95))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=3459)
    parser.add_argument("--length", type=int, default=50, help="items of a history")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    onnx = all(importlib.util.find_spec(name) for name in ONNX_PACKAGES)
    random = np.random.default_rng(0)
    histories = random.integers(0, args.items, (args.requests, args.length)).tolist()
    rows = []
    for kind in (SASRec, GRU4Rec):
        student = kind(args.items).eval()
        own = latencies_ms(lambda history, student=student: student.scores([history]), histories)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            export_student(student, [str(item) for item in range(args.items)], folder, onnx=onnx)
            program = torch.export.load(folder / PROGRAM).module()
            with torch.inference_mode():
                others = {
                    "torch.export": latencies_ms(
                        lambda history, run=program, student=student: run(requests([history], student)), histories
                    )
                }
            if onnx:
                import onnxruntime

                session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
                others["onnxruntime"] = latencies_ms(
                    lambda history, run=session, student=student: run.run(
                        None, {"items": requests([history], student).numpy()}
                    ),
                    histories,
                )
        for name, theirs in others.items():
            for quantile, ours, peer in zip(("p50", "p95"), own, theirs, strict=True):
                row = {
                    "name": f"{kind.__name__}, {name}, {quantile} ms",
                    "ours": round(ours, 2),
                    "peer": round(peer, 2),
                }
                rows.append(row | {"peer": round(peer, 2), "ratio": round(peer / ours, 2), "agree": None})
    report(rows, args.json, [f"{args.items:,} items, histories of {args.length}, {args.requests} requests"])


if __name__ == "__main__":
    main()
