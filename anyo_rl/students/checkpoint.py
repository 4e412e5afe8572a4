"""A fit between two epochs in one safetensors file, so that a killed one goes on as if nothing had been."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from anyo_rl.run.files import MADE_AGAIN, readable, whole_file

Weights = Mapping[str, Tensor]
MODULE, MOMENTS, BEST, RANDOM = "module", "moments", "best", "random"  # what names of tensors begin with


@dataclass(frozen=True)
class Found:
    """What a kept fit had done so far: its report, ready to be one, and the weights of its best epoch."""

    report: Mapping[str, Any]
    best_weights: Weights | None


def keep(
    file: Path,
    report: Mapping[str, Any],
    best_weights: Weights | None,
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
) -> None:
    """Keeps a fit, complete or not at all.

    Args:
        file: where.
        report: what it did so far, ready for JSON.
        best_weights: of the first module, in its best epoch.
        modules: the student, and what else is trained.
        optimizer: of all of them, an AdamW.
        scheduler: its learning rate.
        generator: of the order; the dropout's is torch's own.
    """
    tensors = {
        f"{MODULE}.{i}.{name}": value for i, one in enumerate(modules) for name, value in one.state_dict().items()
    }
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{MOMENTS}.{number}.{name}": value for name, value in moments.items()}
    tensors |= {f"{BEST}.{name}": value for name, value in (best_weights or {}).items()}
    tensors |= {f"{RANDOM}.order": generator.get_state(), f"{RANDOM}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[f"{RANDOM}.cuda"] = torch.cuda.get_rng_state()
    told = {"report": json.dumps(dict(report)), "scheduler": json.dumps(scheduler.state_dict())}
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as opened:
        opened.write(save({name: value.contiguous() for name, value in tensors.items()}, told))


def resume(
    file: Path,
    modules: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
) -> Found | None:
    """Puts everything back as it was kept; `None` where nothing was.

    Raises:
        UsageError: the file is damaged.
    """
    if not file.is_file():
        return None
    with readable(file, MADE_AGAIN), safe_open(file, "pt") as opened:
        parts: dict[str, dict[str, Tensor]] = {MODULE: {}, MOMENTS: {}, BEST: {}, RANDOM: {}}
        for key in opened.keys():  # noqa: SIM118 (it is no mapping)
            part, _, name = key.partition(".")
            parts[part][name] = opened.get_tensor(key)
        for number, module in enumerate(modules):
            module.load_state_dict(_under(parts[MODULE], f"{number}."))
        numbers = {name.partition(".")[0] for name in parts[MOMENTS]}
        moments = {int(number): _under(parts[MOMENTS], f"{number}.") for number in numbers}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        told = opened.metadata()
        scheduler.load_state_dict(json.loads(told["scheduler"]))
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        generator.set_state(parts[RANDOM]["order"])
        torch.set_rng_state(parts[RANDOM]["cpu"])
        if "cuda" in parts[RANDOM] and torch.cuda.is_available():
            torch.cuda.set_rng_state(parts[RANDOM]["cuda"])
        return Found(json.loads(told["report"]), parts[BEST] or None)


def _under(tensors: Weights, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
