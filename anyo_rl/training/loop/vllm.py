"""vLLM as GRPO's sampler (TRL's `use_vllm`): where it stops, what its engine needs on a CPU, and its end.

Ranks, the item loss and validation are on the trainer's own weights, as without vLLM. vLLM is imported when an engine
is made, so this module is also there without it.
"""

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, Trainer, set_seed
from trl import GRPOConfig
from trl.import_utils import is_vllm_available

from anyo_rl.sampling.vllm.engine import check_heads, engine_environment, environment
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.critic import CRITIC


def stop_vllm_at_marker(args: GRPOConfig, tokens: Tokens) -> GRPOConfig:
    """A copy of the settings under which vLLM stops at the marker, too; without vLLM the settings as they are.

    transformers reads where to stop from the model in hand (`anyo_rl.teacher.load.stop_at_marker`), vLLM from the
    folder that the model came from, which may be anybody's. Stop tokens that are set already are left alone.
    """
    if not args.use_vllm or "stop_token_ids" in (args.generation_kwargs or {}):
        return args
    args = copy.copy(args)
    args.generation_kwargs = {**(args.generation_kwargs or {}), "stop_token_ids": [tokens.marker_id]}
    return args


def weights_for_vllm(weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights as TRL hands them to vLLM, under the names that vLLM knows.

    TRL merges adapters and leaves their own weights out, but for peft's on single rows (`trainable_token_indices`),
    and it does not know of a critic.

    Args:
        weights: names and values, while adapters are merged.
    """
    for name, weight in weights:
        if not name.startswith(f"{CRITIC}.") and ".token_adapter.trainable_tokens_" not in name:
            yield name.replace(".token_adapter.", "."), weight


@contextmanager
def colocated_engine(args: GRPOConfig, model: PreTrainedModel) -> Iterator[None]:
    """A trainer made inside may have a vLLM engine of its own (`vllm_mode colocate`), also on a CPU.

    Raises:
        ValueError: on a CPU: vLLM has no code there for the model's attention heads.
    """
    if not (args.use_vllm and args.vllm_mode == "colocate"):
        yield
        return
    on_gpu = torch.cuda.is_available()
    with environment(engine_environment(on_gpu)):
        if not on_gpu and is_vllm_available():
            check_heads(model.name_or_path)
            import vllm._custom_ops as ops
            from vllm.model_executor.layers import utils as layers

            # oneDNN, and SGL's kernels on processors with AMX, would pack the weights, and new ones could not be
            # loaded into the engine after an update.
            ops._supports_onednn = False
            layers.check_cpu_sgl_kernel = lambda *_: False
        yield
    # The engine, which draws from the process's own generators, has set them to the number of the process: runs with
    # other seeds would draw alike. Processes that hold one engine together must go on drawing alike.
    set_seed(args.seed + args.process_index // args.vllm_tensor_parallel_size)


def stop_colocated_engine(trainer: Trainer) -> None:
    """Ends a trainer's own vLLM engine, if it has one, and frees its memory; the trainer can't sample any more.

    Process groups stay: vLLM would destroy those of the training with its own.
    """
    generation = getattr(trainer, "vllm_generation", None)
    if generation is None or getattr(generation, "llm", None) is None:
        return
    client = generation.llm.llm_engine.engine_core
    if finalizer := getattr(client, "_finalizer", None):
        finalizer.detach()  # it would run at the end of the process, when the groups are gone
    client.engine_core.model_executor.shutdown()
    del generation.llm
    gc.unfreeze()  # vLLM froze what was there when the engine started, and with it the engine
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
