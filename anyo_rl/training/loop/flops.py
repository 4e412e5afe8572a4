"""FLOPs of a stage, counted where they are spent: training, sampling, ranking, values and rejected paths.

One function for every stage: each linear layer of the teacher counts what goes through it, padding included, and its
decoder the products of attention. A multiplication with its addition is two. A backward pass costs twice its forward,
or once where the weights are frozen (adapters); what gradient checkpointing computes again counts again. Element-wise
work, the optimizer and the few rows of the head that a ranking reads are not seen. Of vLLM's sampling and of jobs
outside of trainers (`log_flops`), tokens count, by the linear layers that they go through.

`flops` in `metrics.jsonl` is the sum since the stage began, of all processes, each taken to do what the main one does.
Validations are apart, in `flops/validation`.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

from anyo_rl.run.folder import append_metrics, read_metrics

FLOPS = "flops"
VALIDATION_FLOPS = "flops/validation"
IGNORED = -100


class FlopCounter:
    """Counts what goes through a model's linear layers and its attention.

    Attributes:
        total: multiplications and additions so far, validations apart.
        validation: those of validations.
    """

    def __init__(self) -> None:
        self.total = 0
        self.validation = 0
        self._validates = False
        self._hooks: list[Any] = []

    def watch(self, model: nn.Module) -> None:
        """Counts what a model computes from now on, whoever calls it."""
        for module in model.modules():
            if isinstance(module, nn.Linear):
                self._hooks.append(module.register_forward_hook(self._linear))
            elif isinstance(module, PreTrainedModel):
                of_decoder = module.get_decoder() is module
                hook = self._attention if of_decoder else self._fused_head
                self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def close(self) -> None:
        """Counts no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def add(self, n: int) -> None:
        """Adds operations that were done elsewhere."""
        if self._validates:
            self.validation += n
        else:
            self.total += n

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is done inside is a validation."""
        self._validates = True
        try:
            yield
        finally:
            self._validates = False

    def _linear(self, module: nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        n_rows = output.numel() // module.out_features
        self.add(2 * n_rows * module.in_features * module.out_features * _passes(module.weight.requires_grad))

    def _attention(self, module: PreTrainedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.add(attention_flops(module.config, args, kwargs) * _passes(trained=True))

    def _fused_head(self, module: PreTrainedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """TRL's trainers read the head's weights and never call it, and compute its logits again in the backward."""
        head, labels = module.get_output_embeddings(), kwargs.get("labels")
        if not kwargs.get("fused_lm_head") or labels is None or head is None:
            return
        # On GPUs only positions with a label are scored.
        n_rows = int((labels[:, 1:] != IGNORED).sum()) if labels.is_cuda else labels[:, 1:].numel()
        passes = _passes(head.weight.requires_grad)
        self.add(2 * n_rows * head.weight.numel() * (passes + (passes > 1)))


def _passes(trained: bool) -> int:
    """How often a forward's work is done: once, or three times (twice) where a backward follows it.

    What is computed inside a backward, by gradient checkpointing, is that of a forward alone: its backward was counted
    with the first one.
    """
    if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
        return 1
    return 3 if trained else 2


def attention_flops(config: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Multiplications and additions of queries with keys, and of weights with values, in one forward of a decoder.

    Args:
        config: the model's.
        args: what the decoder was called with.
        kwargs: the same by name; the last axis of a mask tells the length with what is cached.
    """
    config = config.get_text_config()
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if tokens is None:
        tokens = kwargs["inputs_embeds"][..., 0]
    n_batch, n_time = tokens.shape
    mask = kwargs.get("attention_mask")
    n_keys = mask.shape[-1] if isinstance(mask, torch.Tensor) else n_time
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return int(4 * config.num_hidden_layers * n_batch * n_time * n_keys * width)


def token_flops(model: PreTrainedModel) -> int:
    """A forward of one token through the linear layers of a model: for tokens that another engine sampled."""
    return sum(2 * m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear))


def log_flops(metrics: Path, stage: str, flops: float) -> None:
    """Appends what a job outside of trainers came to, once; the main process does it."""
    if PartialState().is_main_process and stage not in {row.get("stage") for row in read_metrics(metrics)[0]}:
        append_metrics(metrics, {"stage": stage, "step": 0, FLOPS: flops})


class Flops(TrainerCallback):
    """Puts `flops` and `flops/validation` among a TRL trainer's metrics.

    Args:
        trainer: a trainer with TRL's `_metrics`; gets the counter as `flop_counter`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.counter = trainer.flop_counter = FlopCounter()
        self.counter.watch(trainer.model)
        for other in ("ref_model", "teacher_model"):
            if getattr(trainer, other, None) is not None:
                self.counter.watch(getattr(trainer, other))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Goes on from what a run that was killed had logged."""
        n_processes = self.trainer.accelerator.num_processes
        for name, attribute in ((FLOPS, "total"), (VALIDATION_FLOPS, "validation")):
            logged = [row[name] for row in state.log_history if name in row]
            if logged:
                setattr(self.counter, attribute, int(logged[-1] / n_processes))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Brings the metrics up to date."""
        n_processes = self.trainer.accelerator.num_processes
        self.trainer._metrics["train"][FLOPS] = [float(self.counter.total * n_processes)]
        self.trainer._metrics["train"][VALIDATION_FLOPS] = [float(self.counter.validation * n_processes)]

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the exact count in the state that this validation's checkpoint keeps: rows of the log are rarer."""
        n_processes = self.trainer.accelerator.num_processes
        counted = {FLOPS: self.counter.total, VALIDATION_FLOPS: self.counter.validation}
        exact = {name: float(n * n_processes) for name, n in counted.items()}
        state.log_history.append({"step": state.global_step, **exact})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts no more."""
        self.counter.close()


def validating(trainer: Trainer) -> AbstractContextManager[None]:
    """What is done inside counts as a validation, where the trainer counts at all."""
    counter: FlopCounter | None = getattr(trainer, "flop_counter", None)
    return nullcontext() if counter is None else counter.apart()
