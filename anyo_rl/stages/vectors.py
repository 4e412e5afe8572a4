"""Vectors of a catalog's titles, made once and kept in the run folder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from anyo_rl.data.task import Task
from anyo_rl.encoders.hidden_states import minilm_encoder
from anyo_rl.encoders.tfidf import tfidf_vectors
from anyo_rl.run.files import readable, whole_file
from anyo_rl.run.settings import UsageError


def title_vectors(file: Path, task: Task, text: str) -> NDArray[np.float32]:
    """(N, D) vectors of titles, in the order of the catalog.

    Args:
        file: where they are kept.
        task: the data.
        text: `tfidf`, of their words, or `minilm`, of all-MiniLM-L6-v2.

    Raises:
        UsageError: the encoder is not installed.
    """
    if not file.is_file():
        titles = task.interactions.items["title"].to_list()
        try:
            vectors = tfidf_vectors(titles) if text == "tfidf" else minilm_encoder()(titles).numpy()
        except ModuleNotFoundError as error:
            raise UsageError(str(error)) from error
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as opened:
            opened.write(save({"titles": np.ascontiguousarray(vectors)}))
    with readable(file):
        return load_file(file)["titles"]
