"""Teachers: any causal LM by path, or a tiny Qwen3 made from scratch for the catalog at hand.

The tiny one is what the embedded default and CI train: a few million parameters, a BPE tokenizer trained on the
catalog's own text with `->` as its marker, and nothing to download.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
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
from anyo_rl.tokens import Tokens

PAD, EOS = "<pad>", "<eos>"


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
    revision = model_args.model_revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation or "sdpa",
            quantization_config=get_quantization_config(model_args),
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:  # a folder without a tokenizer is a ValueError
        raise ValueError(
            f"no teacher at {path!r}: expected a model folder with config.json, model.safetensors and a tokenizer, or "
            f"a model id that can be downloaded ({error})"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


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


def save_teacher(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Saves a teacher, complete or not at all: written beside the folder first and renamed.

    LoRA adapters are merged, so that every later stage loads a plain model.
    """
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
