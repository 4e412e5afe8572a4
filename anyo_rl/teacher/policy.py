"""What the engine asks of a causal LM: its decoder, the rows of its head, and attention over a tree."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

TREE_ATTENTION = ("sdpa", "eager")
PIECE = 1 << 22  # numbers that one gather may make


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The causal LM itself, without wrappers (DDP, PEFT); LoRA layers stay active inside it.

    Raises:
        TypeError: the model is not a causal LM of transformers.
    """
    model = getattr(model, "module", model)
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise TypeError(f"{type(model).__name__} is not a causal language model of transformers")
    return model


@contextmanager
def last_hidden(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects the last hidden states (B, T, D) of each forward meanwhile, with their gradients.

    TRL's trainers ask a forward for the log-probabilities of labels, and it hides the states that these come from.
    What else there is to be read off need not cost a second forward.
    """
    states: list[torch.Tensor] = []
    hook = (
        causal_lm(model).get_decoder().register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    )
    try:
        yield states
    finally:
        hook.remove()


def check_tree_attention(model: PreTrainedModel) -> None:
    """Refuses models whose layers cannot attend over a tree (each node to its context and ancestors only).

    Raises:
        ValueError: the attention implementation takes no 4D mask, or a layer is not full attention.
    """
    config = model.config.get_text_config()
    implementation = config._attn_implementation
    if implementation not in TREE_ATTENTION:
        raise ValueError(
            f"attention implementation {implementation!r} takes no tree mask; load the teacher with "
            f"attn_implementation set to one of {TREE_ATTENTION}"
        )
    # Mistral names no layer types and has a window all the same.
    windowed = getattr(config, "sliding_window", None) is not None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if windowed else "full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(
            f"{type(model).__name__} has layers of kind {sorted(kinds)}; ranking over the prefix tree needs full "
            f"attention in every layer"
        )


def set_attention_dropout(model: nn.Module, rate: float) -> None:
    """Sets the dropout of the attention's weights while training; its config, which is saved, is left alone."""
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = rate


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, put back as it was afterwards: no dropout in a rank, and caches stay on."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def head_logits(model: PreTrainedModel, hidden_D: torch.Tensor) -> torch.Tensor:
    """Float32 logits (…, V) of last hidden states (…, D), as the model's own forward gives them."""
    return _shaped(model, model.get_output_embeddings()(hidden_D).float())


def row_logits(model: PreTrainedModel, hidden: torch.Tensor, row: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of E (hidden state, token) pairs, by the head's rows only, in fp32.

    Args:
        model: as `causal_lm` gives it.
        hidden: (B, M, D) last hidden states.
        row: (E,) which of the M states.
        tokens: (E,) which token.

    Returns:
        (B, E) float32 logits, as the model's own forward gives them.
    """
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        weight = head.weight[tokens].float()
        logits = torch.einsum("bed,ed->be", hidden[:, row].float(), weight)
        if head.bias is not None:
            logits = logits + head.bias[tokens].float()
    else:  # an adapted or quantised head: its rows are not plain weights
        logits = head(hidden).float()[:, row, tokens]
    return _shaped(model, logits)


def pair_logits(model: PreTrainedModel, hidden: torch.Tensor, row: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Like `row_logits` for states that lie in one flat list, in pieces of a bounded size.

    Args:
        model: as `causal_lm` gives it.
        hidden: (M, D) last hidden states.
        row: (E,) which of the M states.
        tokens: (E,) which token.

    Returns:
        (E,) float32 logits.
    """
    head = model.get_output_embeddings()
    logits = torch.empty(len(row), dtype=torch.float32, device=hidden.device)
    if type(head) is nn.Linear:
        size = max(1, PIECE // hidden.shape[1])
        for part in range(0, len(row), size):
            r, t = row[part : part + size], tokens[part : part + size]
            logits[part : part + size] = (hidden[r].float() * head.weight[t].float()).sum(-1)
        if head.bias is not None:
            logits += head.bias[tokens].float()
    else:
        size = max(1, PIECE // model.config.get_text_config().vocab_size)
        for part in range(0, len(hidden), size):
            inside = (row >= part) & (row < part + size)
            rows = head(hidden[part : part + size]).float()
            logits[inside] = rows[row[inside] - part, tokens[inside]]
    return _shaped(model, logits)


def _shaped(model: PreTrainedModel, logits: torch.Tensor) -> torch.Tensor:
    """What some architectures do to the head's output."""
    config = model.config.get_text_config()
    scale = getattr(config, "logits_scaling", None)  # Granite divides
    if scale:
        logits = logits / scale
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies
    if scale:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits
