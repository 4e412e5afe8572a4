"""Added tokens for the codes of semantic ids: their rows in a teacher, and how adapters train them."""

from collections.abc import Sequence

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.tokens import add_codes

NOISE = 0.1  # of new rows, in standard deviations of those that are there


@torch.no_grad()
def add_item_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, codes: Sequence[str], seed: int = 0
) -> list[int]:
    """Adds the codes of semantic ids to a teacher and its tokenizer; those that it has stay as they are.

    The vector of a new token, and its row in the head where that is not tied, is the mean of the rows that are there
    with a tenth of their deviation as noise. The mean, so that no code starts out likelier than known tokens: at the
    full deviation 600 codes take up to 75% of SmolLM2-135M's probability in running text, at a tenth below 0.01%.
    Noise, because codes with one vector could not be told apart when read. Rows that a checkpoint holds in reserve are
    drawn anew too: they were never trained, and are often all alike.

    Args:
        model: the teacher, whole in this process.
        tokenizer: its tokenizer.
        codes: what to add, each to become one token.
        seed: of the draws.

    Returns:
        The token ids of the codes.
    """
    n_known = len(tokenizer)
    token_ids = add_codes(tokenizer, codes)
    new = [token_id for token_id in token_ids if token_id >= n_known]
    if not new:
        return token_ids
    n_rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > n_rows:
        with torch.random.fork_rng():  # what it draws is drawn anew below
            model.resize_token_embeddings(-(-len(tokenizer) // 8) * 8, mean_resizing=False)
        new += range(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(seed)
    for weight in (layer.weight for layer in _tables(model)):
        known = weight[: min(n_known, n_rows)].float()
        noise = torch.randn(len(new), weight.shape[1], generator=generator).to(weight.device)
        weight[new] = (known.mean(0) + NOISE * known.std(0) * noise).to(weight.dtype)
    return token_ids


@torch.no_grad()
def start_item_tokens(
    model: PreTrainedModel, token_ids: Sequence[int], vectors_C_X: np.ndarray, *, own_space: bool, seed: int = 0
) -> None:
    """Draws the rows of added tokens anew, by vectors: tokens whose vectors are alike get rows that are alike.

    A vector of other width is projected by a random orthogonal matrix, which keeps angles. Rows lie about the mean of
    those that are there, and as far from it on average; a little noise (see `add_item_tokens`) tells tokens with one
    vector apart.

    Args:
        model: the teacher, whole in this process.
        token_ids: C tokens, behind all others of the vocabulary.
        vectors_C_X: a vector for each.
        own_space: whether the first columns, as many as the embeddings are wide, are in the space of the embeddings:
            they stay as they are.
        seed: of projection and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    width = model.get_input_embeddings().weight.shape[1]
    vectors = torch.tensor(vectors_C_X, dtype=torch.float32)
    n_own = width if own_space else 0
    moved_C_D, other_C_X = vectors.new_zeros(len(vectors), width), vectors[:, n_own:]
    if n_own:
        moved_C_D += vectors[:, :n_own]
    if n_other := other_C_X.shape[1]:
        projection = torch.nn.init.orthogonal_(torch.empty(n_other, width), generator=generator)
        moved_C_D += other_C_X @ projection * max(1.0, n_other / width) ** 0.5  # lengths stay, on average
    moved_C_D -= moved_C_D.mean(0)
    moved_C_D /= moved_C_D.norm(dim=1).mean().clamp(min=1e-9)
    for weight in (layer.weight for layer in _tables(model)):
        known = weight[: min(token_ids)].float()
        noise = torch.randn(len(token_ids), width, generator=generator).to(weight.device)
        away = (known - known.mean(0)).norm(dim=1).mean() * moved_C_D.to(weight.device)
        weight[list(token_ids)] = (known.mean(0) + away + NOISE * known.std(0) * noise).to(weight.dtype)


def _tables(model: PreTrainedModel) -> list[nn.Module]:
    """The embeddings, and the head where it is not tied to them."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [embeddings] if head.weight is embeddings.weight else [embeddings, head]


def train_item_tokens(config: PeftConfig | None, model: PreTrainedModel, token_ids: list[int]) -> PeftConfig | None:
    """Makes adapters train, and save, the rows of added tokens too: frozen, they would stay as they were drawn.

    Only these rows (peft's `trainable_token_indices`), in the embeddings and, where it is not tied to them, in the
    head; `lora_modules_to_save` of the embeddings trains all rows instead, and is left as it is.

    Args:
        config: what `trl.get_peft_config` gives; `None` (all weights are trained) is given back.
        model: the teacher that the adapters go on.
        token_ids: the added tokens; none where items go by their titles.

    Raises:
        ValueError: the head has a bias, which peft would leave out.
    """
    if config is None or not token_ids:
        return config
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if any(module is table for table in _tables(model))]
    if any(name.endswith(part) for name in names for part in getattr(config, "modules_to_save", None) or ()):
        return config
    if getattr(head, "bias", None) is not None:
        raise UsageError(
            f"adapters cannot train added tokens in a head with a bias: set lora_modules_to_save to {names}, or train "
            f"all weights"
        )
    config.trainable_token_indices = {name: list(token_ids) for name in names}
    return config


def show_bias(model: nn.Module) -> None:
    """Lets the head of a teacher with trained token rows say that it has no bias, which TRL's fused head asks it for.

    peft's wrapper around such a head passes on its weight and no other attribute.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    head = base.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None
