"""Saving a teacher, complete or not at all."""

from collections.abc import Mapping
from pathlib import Path

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def save_teacher(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, files: Mapping[str, str] | None = None
) -> None:
    """Saves a teacher, complete or not at all: written beside the folder first and renamed.

    LoRA adapters are merged, so that every later stage loads a plain model.

    Args:
        model: the teacher.
        tokenizer: its tokenizer.
        folder: where to.
        files: text files that belong to it, by name.
    """
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for name, text in (files or {}).items():
        (partial / name).write_text(text, encoding="utf-8")
    partial.rename(folder)
