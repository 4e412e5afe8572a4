"""A tiny teacher from scratch: what the embedded default and CI train, with nothing to download.

A Qwen3 of a few million parameters, and a BPE tokenizer trained on the catalog's own text with `->` as its marker.
"""

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from anyo_rl.data.completion import MARKER

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
