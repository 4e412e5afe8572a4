"""The critic of PPO: a value for the state before each token, read off in the teacher's own forward.

TRL's forward asks for log-probabilities and hides the states that they come from, so the critic listens on the
decoder. It is a part of the model that is trained, for optimizers, DDP and DeepSpeed to see it, and of its
checkpoints; teachers are saved, and vLLM gets their weights, without it.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel
from trl import GRPOConfig

CRITIC = "value_head"  # its name in the model, and the beginning of the names of its weights


class ValueHead(nn.Module):
    """One number for each state, from the last hidden state of the teacher: zero at first.

    Args:
        hidden_size: width of the teacher.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_B_W_D: torch.Tensor, **_: Any) -> torch.Tensor:
        """(B, W) float32 values."""
        return self.linear(hidden_B_W_D.to(self.linear.weight.dtype))[..., 0].float()


class SeparateCritic(nn.Module):
    """A model of its own, which the policy's gradients never meet: twice the weights, and another forward.

    Args:
        classifier: a token classifier with one label, whole in this process (`anyo_rl.training.prm.load_classifier`);
            its head is set to zero.
    """

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        self.classifier = classifier
        for module in classifier.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # old and new values of a token must not differ by chance
        for parameter in classifier.score.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden_B_W_D: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """(B, W) float32 values, of the token ids that the teacher was given."""
        return self.classifier(**inputs, use_cache=False).logits[..., 0].float()


def attach_critic(model: PreTrainedModel, classifier: PreTrainedModel | None = None) -> None:
    """Gives a teacher a critic, before a trainer or peft wraps it.

    Args:
        model: the teacher, without adapters.
        classifier: what a critic of its own is made from; `None` shares the teacher's body.
    """
    critic = ValueHead(model.config.hidden_size) if classifier is None else SeparateCritic(classifier)
    setattr(model, CRITIC, critic.to(model.device))
    model.get_decoder().register_forward_hook(partial(_record, model), with_kwargs=True)


def detach_critic(model: nn.Module) -> None:
    """Takes the critic off a teacher, if it has one."""
    if hasattr(model, CRITIC):
        delattr(model, CRITIC)


def train_critic(config: PeftConfig | None) -> PeftConfig | None:
    """Makes adapters train and keep the critic, which would be frozen beside them."""
    if config is not None:
        config.modules_to_save = [*(config.modules_to_save or ()), CRITIC]  # type: ignore[attr-defined]
    return config


def with_critic(args: GRPOConfig) -> GRPOConfig:
    """A copy of the settings under which DDP waits for the critic's gradients.

    It would look for weights that a forward left out by that forward's outputs, which values are none of.
    """
    args = copy.copy(args)
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False
    return args


def completion_values(values: Sequence[torch.Tensor], n_completion: int) -> torch.Tensor:
    """(B, T) values of the states before each token of the completions, from recorded forwards over whole sequences.

    Args:
        values: (B', W) values of parts of the batch, in order.
        n_completion: T, the tokens of the padded completions.
    """
    return torch.cat(list(values))[:, -n_completion - 1 : -1]


@contextmanager
def recorded_values(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the (B, W) values of each forward meanwhile, W all tokens of the sequence.

    Args:
        model: the teacher, under adapters but under no other wrapper.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    values: list[torch.Tensor] = []
    base.recorded_values = values
    try:
        yield values
    finally:
        base.recorded_values = None


def split_critic(optimizer: torch.optim.Optimizer, model: nn.Module, learning_rate: float) -> None:
    """Gives the critic's weights groups of their own in an optimizer that has not stepped yet.

    Args:
        optimizer: of the whole model.
        model: the model.
        learning_rate: of the critic; a schedule goes over it as over the rest.
    """
    critic = {id(weight) for name, weight in model.named_parameters() if CRITIC in name.split(".")}
    for group in list(optimizer.param_groups):
        own = [weight for weight in group["params"] if id(weight) in critic]
        if len(own) == len(group["params"]):
            group["lr"] = learning_rate
        elif own:
            group["params"] = [weight for weight in group["params"] if id(weight) not in critic]
            optimizer.add_param_group({**group, "params": own, "lr": learning_rate})


def _record(model: PreTrainedModel, _: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    into = getattr(model, "recorded_values", None)
    if into is not None:
        inputs = {name: kwargs[name] for name in ("input_ids", "attention_mask") if kwargs.get(name) is not None}
        into.append(getattr(model, CRITIC)(output.last_hidden_state, **inputs))
