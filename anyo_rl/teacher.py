"""Teachers: any causal LM by path, or a tiny Qwen3 made from scratch for the catalog at hand.

The tiny one is what the embedded default and CI train: a few million parameters, a BPE tokenizer trained on the
catalog's own text with `->` as its marker, and nothing to download.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import ModelConfig, get_quantization_config

from anyo_rl.completion import MARKER
from anyo_rl.tokens import Tokens, add_codes

PAD, EOS = "<pad>", "<eos>"
NOISE = 0.1  # of new rows, in standard deviations of those that are there


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on texts, with `->` as an added token that no text is merged across.

    Args:
        texts: what the teacher reads and writes: titles, prompts, rationales.
        vocab_size: most tokens, the 256 bytes and 3 control tokens included; 259 is the least that it makes.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the marker comes on top
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(MARKER, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_tiny_teacher(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int = 128,
    n_layers: int = 4,
    n_heads: int = 4,
    max_length: int = 1024,
    seed: int = 0,
) -> Qwen3ForCausalLM:
    """Makes a Qwen3-architecture model with random weights, about 0.2M parameters a layer at the default width.

    Args:
        tokenizer: its tokenizer; the vocabulary is padded to a multiple of 8.
        hidden_size: width; the head dimension is `hidden_size / n_heads`.
        n_layers: layers.
        n_heads: attention heads; keys and values have half as many.
        max_length: longest sequence in tokens.
        seed: of the weights.
    """
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=max(1, n_heads // 2),
        head_dim=hidden_size // n_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def load_teacher(model_args: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a teacher and its tokenizer as TRL's `ModelConfig` says (path, dtype, attention, quantisation).

    Weights are read from safetensors only.

    Raises:
        ValueError: the path holds no model.
    """
    path = model_args.model_name_or_path
    tokenizer = load_tokenizer(model_args)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            revision=model_args.model_revision,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation or "sdpa",
            quantization_config=get_quantization_config(model_args),
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise _no_teacher(path, error) from error
    return model, tokenizer


def load_tokenizer(model_args: ModelConfig) -> PreTrainedTokenizerBase:
    """Loads a teacher's tokenizer.

    Raises:
        ValueError: the path holds none.
    """
    path = model_args.model_name_or_path
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=model_args.model_revision, padding_side="left")
    except (OSError, ValueError) as error:  # a folder without a tokenizer is a ValueError
        raise _no_teacher(path, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _no_teacher(path: str | None, error: Exception) -> ValueError:
    return ValueError(
        f"no teacher at {path!r}: expected a model folder with config.json, model.safetensors and a tokenizer, or a "
        f"model id that can be downloaded ({error})"
    )


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


@torch.no_grad()
def title_vectors(model: PreTrainedModel, tokens: Tokens, titles: Sequence[str]) -> np.ndarray:
    """(N, D) float32: the mean of the teacher's own vectors of each title's tokens. Any teacher can give them."""
    table = model.get_input_embeddings().weight
    vectors = []
    for title in titles:
        ids = tokens.tokenizer.encode(f" {tokens.safe_text(title) or '?'}", add_special_tokens=False)
        vectors.append(table[ids].float().mean(0).cpu().numpy())
    return np.stack(vectors)


def stop_at_marker(model: PreTrainedModel, tokens: Tokens, write_item: bool = False) -> None:
    """Makes generation end on the marker (and on end-of-sequence), so that the reasoning is the whole completion.

    TRL reads the stop tokens from the model's generation config when a trainer is built: call this before. What the
    checkpoint brought besides (top_k, repetition penalty) is dropped: it would fill what the trainer leaves open.

    Args:
        model: the teacher.
        tokens: its tokenizer and marker.
        write_item: go on after the marker, and end on end-of-sequence alone.

    Raises:
        ValueError: other tokens have the marker's very vector in the head, as unused tokens of a checkpoint often do:
            the teacher could not learn to write it rather than them.
    """
    head = model.get_output_embeddings().weight
    if len(head) > tokens.marker_id:  # under ZeRO-3 the head is elsewhere
        alike = (head == head[tokens.marker_id]).all(1).nonzero().flatten().tolist()
        if len(alike) > 1:
            names = tokens.tokenizer.convert_ids_to_tokens(alike)
            others = sorted(set(tokens.tokenizer.get_added_vocab()) - set(names))
            raise ValueError(
                f"the marker {names[alike.index(tokens.marker_id)]!r} has the same vector as {len(alike) - 1} other "
                f"tokens and cannot be told from them; set marker_token to another one of {others}"
            )
    model.generation_config = GenerationConfig(
        eos_token_id=[tokens.eos_id, *([] if write_item else [tokens.marker_id])],
        pad_token_id=tokens.tokenizer.pad_token_id,
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
