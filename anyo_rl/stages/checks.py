"""What settings are refused for before anything is read or trained, beside what TRL refuses itself."""

import dataclasses
from typing import Any

from transformers import TrainingArguments
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from trl import DPOConfig, GRPOConfig
from trl.import_utils import is_vllm_available

from anyo_rl.data.task import DataArguments, Task
from anyo_rl.run.settings import Bounds, UsageError, check_bounds
from anyo_rl.stages.arguments import TeacherArguments

# Fields of TRL's and transformers' dataclasses are not ours to mark, so their bounds stand here.
BOUNDS = {
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_ratio"), Bounds(0, 1)),
    **dict.fromkeys(("beta", "epsilon", "epsilon_high", "router_aux_loss_coef"), Bounds(0, 100)),
    **dict.fromkeys(("warmup_steps", "max_grad_norm"), Bounds(0, 10**6)),
    **dict.fromkeys(("seed", "data_seed"), Bounds(0, 2**32 - 1)),  # as many as numpy has
    "top_k": Bounds(0, 10**6),
    **dict.fromkeys(("dataloader_num_workers", "save_total_limit"), Bounds(0, 1000)),
    **dict.fromkeys(("temperature", "repetition_penalty", "delta"), Bounds(above=0, most=100)),
    **dict.fromkeys(("save_steps", "eval_steps", "logging_steps", "num_train_epochs"), Bounds(above=0, most=10**9)),
    **dict.fromkeys(("top_p", "vllm_gpu_memory_utilization", "adam_epsilon"), Bounds(above=0, most=1)),
    **dict.fromkeys(("min_p", "adam_beta1", "adam_beta2", "label_smoothing", "lora_dropout"), Bounds(0, 1)),
    **dict.fromkeys(("ref_model_mixup_alpha", "top_entropy_quantile"), Bounds(0, 1)),
    **dict.fromkeys(("num_generations", "num_iterations"), Bounds(1, 10_000)),
    **dict.fromkeys(("steps_per_generation", "gradient_accumulation_steps", "lora_r", "lora_alpha"), Bounds(1, 10**5)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), Bounds(1, 10**5)),
    **dict.fromkeys(("max_length", "max_completion_length"), Bounds(1, 10**7)),
    "ref_model_sync_steps": Bounds(1, 10**9),
    "max_steps": Bounds(-1, 10**9),
}
MOST = 10**12  # what no number means to be
# Names that TRL knows, of settings that are plain texts to it: it tells an unknown one at the first step.
CHOICES: dict[type, dict[str, tuple[str, ...]]] = {
    GRPOConfig: {
        "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
        "importance_sampling_level": ("token", "sequence"),
        "scale_rewards": ("group", "batch", "none"),
        "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
        "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    },
    DPOConfig: {
        "loss_type": (
            *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "sft"),
            *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm"),
        ),
        "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    },
}


def check_settings(instance: Any) -> None:
    """Checks a dataclass of settings, ours or a library's.

    Raises:
        UsageError: a number is out of its bounds, or a setting cannot be honoured; says what was expected.
    """
    check_numbers(instance, type(instance))
    _check_attention(instance)
    asked = getattr(instance, "use_vllm", False) or getattr(instance, "engine", None) in ("vllm", "ray")
    if asked and not is_vllm_available():
        raise UsageError("vLLM is asked for and not installed: install it (pip install vllm), or sample without it")
    if isinstance(instance, TrainingArguments):
        _check_training(instance)


def check_numbers(values: Any, kind: type) -> None:
    """Checks the numbers of a dataclass, which need not be made yet: libraries compute with them while it is made.

    Args:
        values: has them as attributes.
        kind: the dataclass, ours or a library's.

    Raises:
        UsageError: one is out of its bounds, or beyond all reason.
    """
    fields = [one for one in dataclasses.fields(kind) if one.init]
    of_library = BOUNDS if kind.__module__.partition(".")[0] in ("trl", "transformers") else {}
    names = {one.name for one in fields}
    check_bounds(values, {name: bounds for name, bounds in of_library.items() if name in names})
    check_bounds(values, {one.name: one.metadata["bounds"] for one in fields if "bounds" in one.metadata})
    check_bounds(values, dict.fromkeys(names, Bounds(-MOST, MOST)))


def check_examples(args: Any, task: Task) -> None:
    """Checks that reinforcement has an example to train on.

    Raises:
        UsageError: it has none.
    """
    if getattr(args, "held_out_of_sft", False) and set(task.split("train")["example_id"]) <= set(task.rationales):
        raise UsageError(
            "every training example has a rationale, and held_out_of_sft leaves those out: set it to false, or lower "
            "rationale_share"
        )


def check_history(data_args: DataArguments, teacher_args: TeacherArguments) -> None:
    """Checks that there is something of an item to show in histories besides its title, where that is asked for.

    Raises:
        UsageError: there is not.
    """
    if data_args.history_as != "title" and teacher_args.item_tokens == "title":
        raise UsageError(
            f"history_as is {data_args.history_as} and item_tokens is title: there is nothing but titles to show; set "
            f"history_as to title, or item_tokens to item or semantic_id"
        )


def _check_training(args: TrainingArguments) -> None:
    if args.max_steps == 0:
        raise UsageError("max_steps is 0: expected 1 or more, or -1 to train for num_train_epochs")
    if args.save_only_model:
        raise UsageError(
            "save_only_model is true: a run that was killed goes on from its checkpoints, which need the optimizer "
            "too; expected false"
        )
    if args.resume_from_checkpoint is not None:
        raise UsageError(
            f"resume_from_checkpoint is {args.resume_from_checkpoint!r}: a run goes on from the newest checkpoint in "
            "its output_dir by itself; leave it out, and to start from a teacher name it as model_name_or_path"
        )
    if getattr(args, "sync_ref_model", False) and getattr(args, "beta", 0) == 0:
        raise UsageError("sync_ref_model is true and beta is 0: without a reference there is nothing to keep in step")
    for name, known in CHOICES.get(type(args), {}).items():
        told = getattr(args, name)
        for one in told if isinstance(told, list) else [told]:
            if one not in known:
                raise UsageError(f"{name} is {one!r}; expected one of {', '.join(known)}")


def _check_attention(instance: Any) -> None:
    """Refuses at the start what loading the first teacher would refuse."""
    attention = getattr(instance, "attn_implementation", None)
    missing = {
        "flash_attention_2": not is_flash_attn_2_available(),
        "flash_attention_3": not is_flash_attn_3_available(),
    }
    if attention is not None and missing.get(attention):
        raise UsageError(
            f"attn_implementation is {attention!r}, for which its package or a GPU is missing: install flash-attn, or "
            "take sdpa"
        )
