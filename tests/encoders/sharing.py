"""Vectors of titles by all processes of a launch, before and after the weights change.

    accelerate launch --config_file accelerate_configs/cpu_2.yaml -m tests.encoders.sharing OUT [N_LOST]

OUT gets the folder `vectors` and, of each process, what it found and a file with the number of processes and of titles
that it embedded before and after. With N_LOST the last process is killed once it has embedded as many.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from anyo_rl.encoders import vector_file
from anyo_rl.encoders.hidden_states import HiddenStateEncoder, teacher_encoder
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer

TITLES = [f"{word} {number}" for number in range(25) for word in ("lamp", "oak", "mug", "toy")]
PIECE = 8


def make_encoder() -> HiddenStateEncoder:
    tokenizer = train_tokenizer([f" {title}" for title in TITLES], vocab_size=300)
    model = make_tiny_teacher(tokenizer, hidden_size=32, n_layers=2, n_heads=2, max_length=64)
    return teacher_encoder(model, tokenizer)


def main() -> None:
    out, n_lost = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
    vector_file.PIECE = PIECE
    state = PartialState(cpu=True)
    encoder = make_encoder()
    counts: list[int] = []
    embed = encoder._embed

    def counting(ids: list[list[int]]) -> torch.Tensor:
        if n_lost is not None and state.process_index == state.num_processes - 1 and sum(counts) >= n_lost:
            os.kill(os.getpid(), signal.SIGKILL)
        counts.append(len(ids))
        return embed(ids)

    encoder._embed = counting
    found = {"before": vector_file.shared_vectors(encoder, TITLES, out / "vectors").clone()}
    n_before = sum(counts)
    with torch.no_grad():
        encoder.backbone.norm.weight.mul_(2)
    found["after"] = vector_file.shared_vectors(encoder, TITLES, out / "vectors").clone()
    save_file(found, out / f"found-{state.process_index}.safetensors")
    (out / f"counts-{state.process_index}.json").write_text(
        json.dumps([state.num_processes, n_before, sum(counts) - n_before])
    )


if __name__ == "__main__":
    main()
