"""What every benchmark prints and writes: the machine, and one row per comparison."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def machine() -> str:
    """The processor, how many cores this process may use, and how busy they are."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}, {cores} cores{load}, {platform.system()}, Python {platform.python_version()}"


def report(rows: list[dict[str, Any]], json_file: str | None, notes: Sequence[str] = ()) -> None:
    """Prints the machine, notes and a table of the rows, and writes all of it as JSON where a file is named.

    Args:
        rows: each with the same keys: name, ours, peer, ratio, agree.
        json_file: where to write `{"machine": …, "notes": …, "rows": …}`.
        notes: lines that say what was compared.
    """
    here = machine()
    print(f"machine: {here}", *notes, sep="\n")
    table = [list(rows[0])] + [["-" if value is None else str(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]))
    if json_file:
        Path(json_file).write_text(
            json.dumps({"machine": here, "notes": list(notes), "rows": rows}, indent=2), encoding="utf-8"
        )
