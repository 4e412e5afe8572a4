"""What the engine asks of a causal LM: its decoder, the rows of its head, and attention over a tree."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout
from transformers import PreTrainedModel

from anyo_rl.run.settings import UsageError

DIVERGED = (
    "the teacher's probabilities are no numbers: its weights have diverged. Take a lower learning_rate, and begin "
    "anew or from an earlier checkpoint"
)
TREE_ATTENTION = ("sdpa", "eager")  # take any mask
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


def attends_over_trees(model: PreTrainedModel) -> bool:
    """Whether all layers can attend over a tree, each node to its context and ancestors only: full attention can.

    A sliding window counts columns of the cache, where a tree's branches lie side by side, and a recurrent state has
    no branches at all.
    """
    config = model.config.get_text_config()
    # Mistral names no layer types and has a window all the same.
    windowed = getattr(config, "sliding_window", None) is not None
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if windowed else "full_attention"])
    return kinds == {"full_attention"}


@contextmanager
def divergence_told() -> Iterator[None]:
    """Says what is behind it where torch is to draw from what is no distribution."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" in str(error):
            raise UsageError(DIVERGED) from error
        raise


def attention_bias(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as what is added to attention's scores, because eager attention takes no boolean mask."""
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return bias.masked_fill_(~allowed, torch.finfo(dtype).min)


@contextmanager
def tree_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention that takes a tree's mask meanwhile, whatever the model trains with: FlashAttention takes none.

    Keys and values in a cache are the same for all kinds.
    """
    config = model.config.get_text_config()
    own = config._attn_implementation
    if own not in TREE_ATTENTION:
        config._attn_implementation = TREE_ATTENTION[0]
    try:
        yield
    finally:
        config._attn_implementation = own


def set_attention_dropout(model: nn.Module, rate: float) -> None:
    """Sets the dropout of the attention's weights while training; its config, which is saved, is left alone."""
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = rate


def set_residual_dropout(model: nn.Module, rate: float) -> None:
    """Drops, while training, from the embeddings and from what each block of a layer adds to its input (SASRec's way).

    Decoders of today have no such setting, and from random weights on small data they learn users by heart without
    it. Forward hooks do it: nothing of it is in the config or in what is saved.

    Raises:
        UsageError: the layers' blocks are not called `self_attn` and `mlp`.
    """

    def drop(module: nn.Module, args: tuple[object, ...], output: Any) -> Any:
        kept, *others = output if isinstance(output, tuple) else (output,)
        kept = dropout(kept, rate, module.training)
        return (kept, *others) if isinstance(output, tuple) else kept

    decoder = causal_lm(model).get_decoder()
    layers = list(getattr(decoder, "layers", []))
    if not layers or not all(hasattr(layer, "self_attn") and hasattr(layer, "mlp") for layer in layers):
        raise UsageError(f"dropout is {rate} and the layers of {type(decoder).__name__} are not known: set it to 0")
    blocks = [block for layer in layers for block in (layer.self_attn, layer.mlp)]
    for block in (decoder.get_input_embeddings(), *blocks):
        block.register_forward_hook(drop)


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
    """Float32 logits (…, V) of last hidden states (…, D), as the model's own forward gives them.

    The head takes no part in autocast, here and below: bfloat16 holds three digits, in which many items would tie.
    """
    head = model.get_output_embeddings()
    dtype = next((weight.dtype for weight in head.parameters() if weight.is_floating_point()), hidden_D.dtype)
    with torch.autocast(hidden_D.device.type, enabled=False):
        return _shaped(model, head(hidden_D.to(dtype)).float())


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
        with torch.autocast(hidden.device.type, enabled=False):
            logits = torch.einsum("bed,ed->be", hidden[:, row].float(), head.weight[tokens].float())
        if head.bias is not None:
            logits = logits + head.bias[tokens].float()
        return _shaped(model, logits)
    return head_logits(model, hidden)[:, row, tokens]  # an adapted or quantised head: its rows are not plain weights


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
    if type(head) is nn.Linear:  # products and sums, which autocast leaves in float32
        size = max(1, PIECE // hidden.shape[1])
        for part in range(0, len(row), size):
            r, t = row[part : part + size], tokens[part : part + size]
            logits[part : part + size] = (hidden[r].float() * head.weight[t].float()).sum(-1)
        if head.bias is not None:
            logits += head.bias[tokens].float()
        return _shaped(model, logits)
    size = max(1, PIECE // model.config.get_text_config().vocab_size)
    for part in range(0, len(hidden), size):
        inside = (row >= part) & (row < part + size)
        logits[inside] = head_logits(model, hidden[part : part + size])[row[inside] - part, tokens[inside]]
    return logits


def block_logits(model: PreTrainedModel, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of each of some states with each of some tokens: one product, in pieces of a bounded size.

    Args:
        model: as `causal_lm` gives it.
        hidden: (R, D) last hidden states.
        tokens: (C,) which tokens, ascending; rows of the head that follow one another are not copied.

    Returns:
        (R, C) float32 logits.
    """
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        first, in_a_row = int(tokens[0]), int(tokens[-1]) - int(tokens[0]) + 1 == len(tokens)
        logits = torch.empty(len(hidden), len(tokens), dtype=torch.float32, device=hidden.device)
        size = max(1, PIECE // hidden.shape[1])
        with torch.autocast(hidden.device.type, enabled=False):
            for part in range(0, len(tokens), size):
                end = min(part + size, len(tokens))
                weight = head.weight[first + part : first + end] if in_a_row else head.weight[tokens[part:end]]
                logits[:, part:end] = hidden.float() @ weight.float().T
        if head.bias is not None:
            logits += head.bias[tokens].float()
        return _shaped(model, logits)
    size = max(1, PIECE // model.config.get_text_config().vocab_size)
    return torch.cat([head_logits(model, part)[:, tokens] for part in hidden.split(size)])


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
