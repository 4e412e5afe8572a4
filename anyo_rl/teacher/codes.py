"""Added tokens for the codes of semantic ids: their rows in a teacher, and how adapters train them."""

from collections.abc import Sequence

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

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
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if layers[0].weight is layers[1].weight:
        del layers[1]
    generator = torch.Generator().manual_seed(seed)
    for weight in (layer.weight for layer in layers):
        known = weight[: min(n_known, n_rows)].float()
        noise = torch.randn(len(new), weight.shape[1], generator=generator).to(weight.device)
        weight[new] = (known.mean(0) + NOISE * known.std(0) * noise).to(weight.dtype)
    return token_ids


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
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [embeddings] if head.weight is embeddings.weight else [embeddings, head]
    names = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    if any(name.endswith(part) for name in names for part in getattr(config, "modules_to_save", None) or ()):
        return config
    if getattr(head, "bias", None) is not None:
        raise ValueError(
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
