"""What one question to the service costs, over HTTP on the loopback.

Each row is a model and a search. `ours` is the time one question after the other, `peer` with several at once, which
are answered in batches, both in ms; `agree` is the share of those that got the very same items.

python benchmarks/serve.py runs/toy --student runs/toy/student
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import numpy as np
from report import report

START_S = 300


@contextlib.contextmanager
def service(args: argparse.Namespace) -> Iterator[str]:
    """The documented command on a port of this machine, until the end of the block."""
    flags = [args.run, *(["--student", args.student] if args.student else []), "--port", str(args.port)]
    with tempfile.NamedTemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "anyo_rl.serve", *flags], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            url, end = f"http://127.0.0.1:{args.port}", time.monotonic() + START_S
            while True:
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    sys.exit(f"the service did not start: {log.read()[-1000:]}")
                with contextlib.suppress(urllib.error.URLError):
                    urllib.request.urlopen(f"{url}/health", timeout=5)
                    break
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait()


def ask(client: httpx.Client, question: dict[str, str]) -> tuple[float, list[str]]:
    """Milliseconds until the answer was there, and its items."""
    began = time.perf_counter()
    answer = client.post("/recommend", json=question)
    spent = 1e3 * (time.perf_counter() - began)
    answer.raise_for_status()
    return spent, [item["item_id"] for item in answer.json()["items"]]


def main() -> None:
    """Starts the service, asks, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder of a teacher or a student")
    parser.add_argument("--student", help="run folder of a student beside it")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at_once", type=int, default=20)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    rows = []
    with service(args) as url, httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        examples = [one["example"] for one in client.get("/examples", params={"limit": 50}).json()]
        about = client.get("/about").json()
        for model in about["models"]:
            questions = [
                {"example": examples[number % len(examples)], "model": model["model"]}
                for number in range(args.requests)
            ]
            for question in questions[:5]:
                ask(client, question)
            alone = [ask(client, question) for question in questions]
            with ThreadPoolExecutor(args.at_once) as pool:
                together = list(pool.map(lambda question: ask(client, question), questions))
            same = np.mean([one[1] == other[1] for one, other in zip(alone, together, strict=True)])
            for name, quantile in (("p50", 0.5), ("p95", 0.95)):
                ours, peer = (
                    float(np.quantile([spent for spent, _ in found], quantile)) for found in (alone, together)
                )
                row = {"name": f"{model['model']} ({model['stage']}, {model['search']}), {name} ms"}
                numbers = {"ours": round(ours, 1), "peer": round(peer, 1), "ratio": round(peer / ours, 2)}
                rows.append(row | numbers | {"agree": float(same)})
    notes = [
        f"{about['data']}, {about['n_items']:,} items, {args.requests} requests, {args.at_once} at once for `peer`"
    ]
    report(rows, args.json, notes)


if __name__ == "__main__":
    main()
