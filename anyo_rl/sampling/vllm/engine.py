"""vLLM engines for teachers: their settings with and without a GPU, and one engine for the rounds of a run.

vLLM is imported when an engine is made, so this module is also there without it.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.vllm.sampler import VllmSampler
from anyo_rl.teacher.tokens import Tokens

logger = logging.getLogger(__name__)

Fingerprint = tuple[str, tuple[tuple[str, int, int], ...]]


def engine_environment(on_gpu: bool) -> dict[str, str]:
    """Environment variables of a machine's engines; those that are set already go before them.

    Args:
        on_gpu: whether the engines run on GPUs.
    """
    quiet = {"VLLM_NO_USAGE_STATS": "1"}  # nothing is reported to anybody
    if on_gpu:
        return quiet
    return {
        **quiet,
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all engines of a machine would sit on the same cores
        "VLLM_CPU_CI_ENV": "1",  # these two: no compiling, which takes longer than small teachers sample
        "TORCH_COMPILE_DISABLE": "1",
    }


def engine_settings(
    *, max_model_len: int, on_gpu: bool, dtype: str | None = None, max_lora_rank: int = 0, **settings: Any
) -> dict[str, Any]:
    """Arguments of `vllm.LLM`, the model aside, and of `vllm.AsyncEngineArgs`.

    Completions of one context share its key-values (prefix caching). What cannot be honoured on a CPU is left out
    there: see `anyo_rl.sampling.vllm.sampler.check_seeds`.

    Args:
        max_model_len: most tokens of a context and its completion.
        on_gpu: whether the engine runs on a GPU.
        dtype: of the weights; if `None` float32 on the CPU, and on a GPU what vLLM takes (half precision).
        max_lora_rank: highest rank of adapters that requests may ask for; 0 where none will.
        **settings: others of vLLM's, which go before those made here.
    """
    made: dict[str, Any] = {
        "max_model_len": max_model_len,
        "dtype": dtype or ("auto" if on_gpu else "float32"),
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    if not on_gpu:
        made |= {"enforce_eager": True, "enable_chunked_prefill": False, "block_size": 32, "max_num_seqs": 256}
    if max_lora_rank:
        made |= {"enable_lora": True, "max_lora_rank": max_lora_rank}
    return made | settings


def check_heads(teacher: Path | str) -> None:
    """Refuses a teacher whose attention vLLM has no code for on the CPU, where its engine would only die of it.

    Raises:
        ValueError: its heads have another size than those that there is code for.
    """
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    config = AutoConfig.from_pretrained(teacher).get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    able = CPUAttentionBackend.get_supported_head_sizes()
    if size not in able:
        raise UsageError(
            f"the attention heads of {teacher} are {size} wide, and on the CPU vLLM has them of "
            f"{', '.join(map(str, able))}: sample without vLLM (a teacher made from scratch has four heads, so "
            "tiny_hidden_size 128 would do)"
        )


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables meanwhile that are not set: an engine is started with them."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def make_engine(teacher: Path | str, *, on_gpu: bool | None = None, **settings: Any) -> Any:
    """Starts an offline engine (`vllm.LLM`) with a teacher's weights.

    The engine is a process of its own, which imports the program's main module: that must not start anything when
    imported (`if __name__ == "__main__"`).

    Args:
        teacher: its folder, or a model id.
        on_gpu: whether there is a GPU; found out if `None`.
        **settings: see `engine_settings`.
    """
    on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
    logger.info("starting a vLLM engine of %s", teacher)
    with environment(engine_environment(on_gpu)):
        from vllm import LLM

        return LLM(str(teacher), **engine_settings(on_gpu=on_gpu, **settings))


def stop_engine(llm: Any) -> None:
    """Ends an engine's process, and with it all memory that it held."""
    llm.llm_engine.engine_core.shutdown()


class RoundEngine:
    """One vLLM engine for the rounds of a run, in which weights change.

    Adapters on the teacher that the engine has go in as requests, in no time. For other weights the engine is stopped
    and another one started. vLLM can also read weights into an engine in place (`reload_weights`), and this is not
    done: on the CPU, with vLLM 0.32, an engine of a teacher whose head is tied to its embeddings wrote something else
    afterwards than the new weights do.

    Args:
        **settings: of all its engines, see `engine_settings`; `max_model_len` must be there, and `max_lora_rank` where
            adapters come.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.llm: Any = None
        self._weights: Fingerprint | None = None
        self._n_adapters = 0

    def sampler_for(
        self,
        teacher: Path | str,
        tokens: Tokens,
        adapter: Path | str | None = None,
        *,
        with_log_probs: bool = False,
    ) -> VllmSampler:
        """A sampler with a teacher's weights as they are now; it is good until the next one is asked for.

        Args:
            teacher: its folder, or a model id.
            tokens: its tokenizer and marker.
            adapter: folder of a LoRA adapter on it.
            with_log_probs: whether samples carry the log-probability of their tokens.

        Raises:
            ValueError: vLLM cannot hold the adapter apart: it trains more than LoRA matrices, or the engine takes
                none.
        """
        if adapter is not None:
            _check_adapter(Path(adapter))
        weights = _fingerprint(teacher)
        if self.llm is None or weights != self._weights:
            self.close()
            self.llm, self._weights = make_engine(teacher, **self.settings), weights
        request = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest

            # A number and a name belong to one adapter for the engine's life; by the name its prefixes are kept apart.
            self._n_adapters += 1
            request = LoRARequest(f"adapter-{self._n_adapters}", self._n_adapters, str(adapter))
        return VllmSampler(self.llm, tokens, with_log_probs=with_log_probs, lora_request=request)

    def close(self) -> None:
        """Stops the engine, where there is one."""
        if self.llm is not None:
            stop_engine(self.llm)
            self.llm, self._weights = None, None


def _fingerprint(teacher: Path | str) -> Fingerprint:
    """What tells weights from others, also where a folder was written anew."""
    files = sorted(Path(teacher).glob("*.safetensors")) if Path(teacher).is_dir() else []
    return str(teacher), tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _check_adapter(folder: Path) -> None:
    """Refuses adapters that vLLM would read only in part.

    Raises:
        ValueError: the folder holds no adapter, or one that also trains rows of the embeddings or whole modules.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        raise UsageError(f"found no {file}: expected the folder of a LoRA adapter, as peft saves it")
    config = json.loads(file.read_text(encoding="utf-8"))
    whole = [name for name in ("modules_to_save", "trainable_token_indices") if config.get(name)]
    if whole:
        raise UsageError(
            f"the adapter in {folder} has {' and '.join(whole)} besides its LoRA matrices (semantic ids are trained "
            "so), which vLLM does not read: merge it into the teacher (`save_teacher`), and name that as the teacher"
        )
