"""Teachers by path: any causal LM, its tokenizer, and where its generation ends."""

from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_quantization_config

from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.tokens import Tokens


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
    except (OSError, ValueError, SafetensorError) as error:
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


def _no_teacher(path: str | None, error: Exception) -> UsageError:
    return UsageError(
        f"no teacher at {path!r}: expected a model folder with config.json, model.safetensors and a tokenizer, or a "
        f"model id that can be downloaded ({error})"
    )


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
            raise UsageError(
                f"the marker {names[alike.index(tokens.marker_id)]!r} has the same vector as {len(alike) - 1} other "
                f"tokens and cannot be told from them; set marker_token to another one of {others}"
            )
    model.generation_config = GenerationConfig(
        eos_token_id=[tokens.eos_id, *([] if write_item else [tokens.marker_id])],
        pad_token_id=tokens.tokenizer.pad_token_id,
    )
