"""Vectors of titles in one file, which is mapped into memory: the processes of a machine share its pages.

A million vectors of an 8B teacher are 16 GB, too much for each of eight processes, and minutes of a GPU. So the
processes of a launch share the titles out in pieces, and each piece is a file until all of them are one: what was
killed goes on from the pieces that were done.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from anyo_rl.encoders.hidden_states import HiddenStateEncoder
from anyo_rl.run.files import whole_file
from anyo_rl.run.settings import UsageError

logger = logging.getLogger(__name__)

PIECE = 1_024  # titles; what a killed process loses at most


def shared_vectors(encoder: HiddenStateEncoder, texts: Sequence[str], folder: Path) -> torch.Tensor:
    """Float32 vectors (N, D) of texts, mapped from a file that is written once for these weights and texts.

    All processes of a launch call this together, under ZeRO-3 and FSDP2 with gathered weights. Files of other weights
    or texts are removed, so vectors from earlier calls are not to be used any more; what is written to these stays in
    this process.

    Args:
        encoder: what embeds them, its weights on the device that is to compute.
        texts: each of them once, one or more.
        folder: where the file lies or is to lie, for all processes; files of other people in it are left alone.

    Raises:
        ValueError: there is no text or one comes twice, the tokenizer makes no token of one, weights are not whole, or
            the processes do not see one another's files.
    """
    if not texts:
        raise ValueError("there is no text to embed")
    if len(set(texts)) < len(texts):  # in two pieces they would differ by float noise, and would not tie
        raise ValueError(f"found {len(set(texts))} different texts among {len(texts)}, expected each of them once")
    state = PartialState()
    name = _fingerprint(encoder, texts)
    file = folder / f"vectors-{name}.npy"
    pieces = {start: folder / f"vectors-{name}-{start}.npy" for start in range(0, len(texts), PIECE)}
    # One process looks and says what is missing: others may not see a file that has just come or gone.
    missing: list[list[int]] = [[]]
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        done = _mapped(file) is not None
        _remove(folder, {file} if done else set(pieces.values()))
        missing = [[] if done else list(pieces)]
    (wanted,) = broadcast_object_list(missing)
    for start in wanted[state.process_index :: state.num_processes]:
        if _mapped(pieces[start]) is None:
            vectors_n_D = encoder(list(texts[start : start + PIECE])).cpu().numpy()
            with whole_file(pieces[start]) as opened:
                np.save(opened, vectors_n_D, allow_pickle=False)
    state.wait_for_everyone()
    if wanted and state.is_main_process:
        _join(list(pieces.values()), len(texts), file)
        _remove(folder, {file})
    state.wait_for_everyone()
    vectors_N_D = _mapped(file)
    if vectors_N_D is None:
        raise UsageError(f"{file} is not there: the run folder must be the same for all processes")
    return torch.from_numpy(vectors_N_D)


def _fingerprint(encoder: HiddenStateEncoder, texts: Sequence[str]) -> str:
    """Of all that vectors depend on: the weights, their config, pooling, and the tokens that are read of each text.

    The processes share the work.
    """
    state, backbone = PartialState(), encoder.backbone
    own = slice(state.process_index, None, state.num_processes)
    weights = sorted(backbone.state_dict().items())
    empty = [name for name, weight in weights if not weight.numel()]
    if empty:
        raise UsageError(f"{empty[0]} is empty: gather weights that are shared out before titles are embedded")
    digests = []
    for name, weight in weights[own]:
        content = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digests.append(_digest(f"{name} {weight.dtype} {list(weight.shape)}", content.data))
    for start in range(0, len(texts), PIECE)[own]:
        ids = encoder.token_ids(texts[start : start + PIECE])
        digests.append(_digest(f"texts {start}", json.dumps(ids).encode()))
    config = {key: value for key, value in backbone.config.to_dict().items() if not key.startswith("_")}
    how = [encoder.pooling, encoder.normalize, type(backbone).__name__, config]
    return _digest(json.dumps([sorted(gather_object(digests)), how], default=str), b"")[:32]


def _digest(name: str, content: bytes | memoryview) -> str:
    found = hashlib.sha256(name.encode() + b"\0")
    found.update(content)
    return found.hexdigest()


def _mapped(file: Path) -> np.ndarray | None:
    """The array of a file, `None` where there is none or it is damaged."""
    try:
        # Copy-on-write, because torch takes no read-only array without a warning.
        return np.load(file, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError) as error:
        logger.warning("%s is damaged (%s): its titles are embedded again", file, error)
        return None


def _join(pieces: list[Path], n_texts: int, file: Path) -> None:
    """Writes one file of all pieces, complete or not at all."""
    with whole_file(file) as opened:
        for number, piece in enumerate(pieces):
            vectors_n_D = _mapped(piece)
            if vectors_n_D is None:
                raise UsageError(f"{piece} is not there: the run folder must be the same for all processes")
            if number == 0:
                head = {"descr": "<f4", "fortran_order": False, "shape": (n_texts, vectors_n_D.shape[1])}
                np.lib.format.write_array_header_1_0(opened, head)
            opened.write(vectors_n_D.data)


def _remove(folder: Path, kept: set[Path]) -> None:
    """Removes the files of `shared_vectors` but for some, those that were not finished among them."""
    for pattern in ("vectors-*.npy", ".vectors-*.partial"):
        for file in set(folder.glob(pattern)) - kept:
            file.unlink()
