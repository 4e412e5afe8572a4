"""Memory between the stages of a run."""

import gc

import torch


def free_memory() -> None:
    """Frees what nothing holds any more: models and trainers refer to themselves, so they wait for the collector."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
