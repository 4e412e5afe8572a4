"""Serves a trained teacher, a student or evidence, with a page to try it on.

python -m anyo_rl.serve runs/toy --student runs/toy/student --port 8000
"""

import argparse
import importlib.util
import logging
from pathlib import Path

from anyo_rl.run.settings import UsageError
from anyo_rl.serve.recommender import Recommender
from anyo_rl.stages.begin import plain_errors

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def parser() -> argparse.ArgumentParser:
    """Settings of the command."""
    told = argparse.ArgumentParser(prog="python -m anyo_rl.serve", description=(__doc__ or "").partition("\n")[0])
    told.add_argument("run", type=Path, help="run folder of a teacher, a student or evidence")
    told.add_argument("--student", type=Path, help="run folder of a student (or evidence) to stand beside it")
    told.add_argument("--stage", help="which teacher of the run")
    told.add_argument("--evidence", type=Path, help="run folder of evidence that the teacher is asked together with")
    told.add_argument("--data_dir", type=Path, help="where named data sets lie; as the run's settings say if unset")
    told.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    told.add_argument("--port", type=int, default=8000)
    told.add_argument("--most_waiting", type=int, default=32, help="questions in a model's queue, at most")
    told.add_argument("--most_at_once", type=int, default=32, help="questions answered in one batch, at most")
    told.add_argument("--timeout_s", type=float, default=60.0, help="longest wait for an answer")
    return told


@plain_errors(ValueError, FileNotFoundError)
def main() -> None:
    """Opens what is named, and serves until it is stopped; what was begun is answered first."""
    args = parser().parse_args()
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UsageError(f"{', '.join(missing)} not installed: pip install 'anyo-rl[serve]'")
    for name, least in {"most_waiting": 1, "most_at_once": 1, "timeout_s": 0.001, "port": 0}.items():
        if getattr(args, name) < least:
            raise UsageError(f"{name} is {getattr(args, name)}: expected {least} or more")
    import uvicorn

    from anyo_rl.serve.app import Limits, make_app

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    first = Recommender.from_pretrained(args.run, stage=args.stage, data_dir=args.data_dir, evidence=args.evidence)
    models = {"teacher" if first.searches else first.place.name: first}
    if args.student is not None:
        other = Recommender.from_pretrained(args.student, data_dir=args.data_dir)
        name = "teacher" if other.searches else other.place.name
        models[name if name not in models else f"{name}_2"] = other
    app = make_app(models, Limits(args.most_waiting, args.most_at_once, args.timeout_s))
    uvicorn.run(
        app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=int(args.timeout_s) + 1
    )


if __name__ == "__main__":
    main()
