"""Whole weights: on every process while a trainer samples or ranks, and in full precision where they are saved."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from trl.models import unwrap_model_for_generation


@contextmanager
def gathered(model_wrapped: nn.Module, accelerator: Accelerator) -> Iterator[nn.Module]:
    """The model without wrappers, its weights whole on each process, in the precision that it is trained in.

    Each process may run as many forwards as it needs. They are under the trainer's autocast, as a forward through its
    wrappers would be: ranks are those of the policy that is trained, and cost what its forwards do.

    A search ends when it ends: processes that shared the weights out would wait for one another in its forwards. TRL
    gathers what DeepSpeed ZeRO-3 shares out, FSDP2 is gathered here. All processes must enter and leave together.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    with (
        unwrap_model_for_generation(model_wrapped, accelerator) as model,
        unsharded(model, getattr(plugin, "reshard_after_forward", True)),
        accelerator.autocast(),
    ):
        yield model


@contextmanager
def unsharded(model: nn.Module, reshard_after_forward: bool = True) -> Iterator[None]:
    """Gathers the weights of an FSDP2 model; others are left alone.

    Args:
        model: a model whose own forward has run before, so that FSDP2 knows its root.
        reshard_after_forward: how FSDP2 is set up afterwards.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(reshard_after_forward, recurse=False)
            module.reshard()


def unquantised(model: PreTrainedModel) -> PreTrainedModel:
    """A quantised model with the weights that it computes with, in full precision and size; others as they are."""
    return model.dequantize() if getattr(model, "is_quantized", False) else model
