"""Sampling in a vLLM engine: one request for each context, its completions drawn side by side over one prefix.

Completions do not depend on the company that a context is sampled in: the seed of a request comes from the job's seed
and the example's key. (Only the float noise of another batch can turn a draw that stood on an edge.)

vLLM is imported when an engine is asked, so this module is also there without it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sample, Sampling
from anyo_rl.sampling.seeds import keys_of, request_seed
from anyo_rl.teacher.tokens import Tokens

RAW, PROCESSED = "raw_logprobs", "processed_logprobs"  # engines give them before sampling's settings, or after
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0  # vLLM raises what is below to it, and refuses what is above


def check_seeds(llm: Any) -> None:
    """Refuses an engine on the CPU that reads long prompts in pieces, by a `ValueError`.

    After a piece vLLM turns the request's generator back, and dies where that is the CPU's, which cannot.
    """
    config = llm.llm_engine.vllm_config
    if config.device_config.device_type == "cpu" and config.scheduler_config.enable_chunked_prefill:
        raise UsageError(
            "on the CPU vLLM dies of requests with a seed whose prompts it reads in pieces: make the engine with "
            "LLM(..., enable_chunked_prefill=False)"
        )


def check_log_probs(mode: str, with_log_probs: bool, temperature: float, top_p: float) -> None:
    """Refuses log-probabilities that the engine has not, by a `ValueError`; see `VllmSampler`.

    Args:
        mode: the engine's `logprobs_mode`.
        with_log_probs: whether they are asked for.
        temperature: at which is sampled; greedily, any engine has them.
        top_p: nucleus.
    """
    possible = {RAW: temperature == 1, PROCESSED: top_p == 1}
    if with_log_probs and temperature > 0 and not possible.get(mode, False):
        able = [name for name, can in possible.items() if can]
        fix = f"make it with LLM(..., logprobs_mode={able[0]!r})" if able else "leave top_p at 1"
        raise UsageError(
            f"the engine's {mode} are not those of the policy at temperature {temperature} and top_p {top_p}: "
            f"{fix}, or sample without log-probabilities"
        )


def request_settings(stops: Sequence[int], with_log_probs: bool, sampling: Sampling) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` for one request.

    Nothing is left to the checkpoint's generation config, which would bring in its own top_k and stop tokens.

    Args:
        stops: tokens that end a completion.
        with_log_probs: whether to ask for the log-probability of the tokens.
        sampling: how; its seed is that of this request (`request_seed`), to which vLLM adds the sample's index.
    """
    greedy = sampling.temperature == 0
    return {
        "n": 1 if greedy else sampling.n,  # vLLM refuses to be greedy twice
        "temperature": float(sampling.temperature),
        "top_p": 1.0 if greedy else sampling.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": sampling.max_new_tokens,
        "seed": None if greedy else sampling.seed,
        # The end of sequence by its id: what the checkpoint calls one may be other tokens.
        "ignore_eos": True,
        "stop_token_ids": list(stops),
        "logprobs": 0 if with_log_probs else None,
        "detokenize": False,
    }


class VllmSampler:
    """Samples with an offline vLLM engine; completions stop at the marker, which is their last token.

    Log-probabilities are the engine's own, and the engine decides what they are. `Sample` wants them under the policy
    at the temperature, with the nucleus left aside; vLLM has them before both (`logprobs_mode="raw_logprobs"`, its
    default) or after both (`"processed_logprobs"`). So a raw engine gives them at temperature 1 and greedily, a
    processed one wherever `top_p` is 1; what it would get wrong is refused. At other temperatures with a nucleus no
    engine has them.

    The prefix cache outlives the weights: call `llm.reset_prefix_cache()` after they changed.

    Args:
        llm: an offline engine (`vllm.LLM`). Without prefix caching, which is vLLM's default, each of a context's
            completions reads it anew.
        tokens: the model's tokenizer and marker.
        with_log_probs: whether samples carry the log-probability of their tokens.
        lora_request: the adapter to sample with (`vllm.lora.request.LoRARequest`); the engine needs
            `enable_lora=True`. An id belongs to one adapter for the engine's life, other weights need another.

    Raises:
        ValueError: an adapter is asked for and the engine takes none, or it is an engine on the CPU that reads long
            contexts in pieces.
    """

    def __init__(self, llm: Any, tokens: Tokens, *, with_log_probs: bool = False, lora_request: Any = None) -> None:
        config = llm.llm_engine.vllm_config
        if lora_request is not None and config.lora_config is None:
            raise UsageError("the engine takes no adapters: make it with LLM(..., enable_lora=True)")
        check_seeds(llm)
        self.llm = llm
        self.tokens = tokens
        self.with_log_probs = with_log_probs
        self.lora_request = lora_request
        self.stops = [tokens.eos_id, tokens.marker_id]

    def sample(
        self,
        contexts_B: Sequence[Sequence[int]],
        sampling: Sampling = Sampling(),
        *,
        keys_B: Sequence[str] | None = None,
    ) -> list[list[Sample]]:
        """See `anyo_rl.sampling.protocol.Sampler`.

        Args:
            contexts_B: token ids of the prompts.
            sampling: how; completions of a smaller n are the first of a larger one's. The temperature is 0 (greedy,
                n copies), or 0.01 to 2, which are vLLM's bounds.
            keys_B: what tells the contexts apart, such as example ids. By default the context itself, and which of
                the same contexts in the call it is.

        Raises:
            ValueError: a setting is out of its range, a context is empty or too long, keys are not one for each
                context, or the engine has not the log-probabilities that are asked for.
        """
        self._check(contexts_B, sampling)
        params = [self.params(sampling, key) for key in keys_of(contexts_B, keys_B)]
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(context)} for context in contexts_B],
            params,
            lora_request=self.lora_request,
            use_tqdm=False,
        )
        copies = sampling.n if sampling.temperature == 0 else 1
        return [[self._sample(found, self.stops) for found in output.outputs] * copies for output in outputs]

    def sample_lines(
        self, contexts_B: Sequence[Sequence[int]], sampling: Sampling, limits_B: Sequence[int], keys_B: Sequence[str]
    ) -> list[Sample]:
        """See `anyo_rl.sampling.protocol.LineSampler`; the prefix cache has what was written before.

        Raises:
            ValueError: as `sample`.
        """
        stops = [*self.stops, *self.tokens.break_ids]
        asked = [replace(sampling, n=1, max_new_tokens=limit) for limit in limits_B]
        for context, one in zip(contexts_B, asked, strict=True):
            self._check([context], one)
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(context)} for context in contexts_B],
            [self.params(one, key, stops) for one, key in zip(asked, keys_of(contexts_B, keys_B), strict=True)],
            lora_request=self.lora_request,
            use_tqdm=False,
        )
        return [self._sample(output.outputs[0], stops) for output in outputs]

    def params(self, sampling: Sampling, key: str, stops: Sequence[int] | None = None) -> Any:
        """The `vllm.SamplingParams` of one context's request; `stops` in place of marker and end of sequence."""
        from vllm import SamplingParams

        of_request = replace(sampling, seed=request_seed(sampling.seed, key))
        settings = request_settings(stops or self.stops, self.with_log_probs, of_request)
        return SamplingParams(**settings, flat_logprobs=self.with_log_probs)

    def _check(self, contexts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        n, max_new_tokens = sampling.n, sampling.max_new_tokens
        temperature, top_p = sampling.temperature, sampling.top_p
        heated = temperature == 0 or LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE
        if n < 1 or max_new_tokens < 1 or not heated or not 0 < top_p <= 1:
            raise UsageError(
                f"n {n}, max_new_tokens {max_new_tokens}, temperature {temperature}, top_p {top_p}: expected at least "
                f"1, at least 1, 0 or {LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE:g}, and above 0 to 1"
            )
        config = self.llm.llm_engine.model_config
        longest = max(map(len, contexts), default=0) + max_new_tokens
        if longest > config.max_model_len:  # the engine would cut completions short and call it their length
            raise UsageError(
                f"a context and its completion take up to {longest} tokens, the engine {config.max_model_len}; "
                f"shorten the history budget or max_new_tokens, or make it with LLM(..., max_model_len={longest})"
            )
        if any(not context for context in contexts):
            raise UsageError("a context is empty; it must hold at least one token")
        check_log_probs(config.logprobs_mode, self.with_log_probs, temperature, top_p)

    def _sample(self, found: Any, stops: Sequence[int]) -> Sample:
        token_ids = tuple(found.token_ids)
        stopped = token_ids[-1] in stops
        # An aborted request must not pass for a completion, nor one that lost its marker.
        if found.finish_reason != ("stop" if stopped else "length"):
            raise RuntimeError(
                f"vLLM ended a completion of {len(token_ids)} tokens by {found.finish_reason!r}, its last token is "
                f"{token_ids[-1]}: expected 'stop' with one of {list(stops)[:5]} as the last, or 'length'"
            )
        log_probs = None
        if self.with_log_probs:
            if tuple(found.logprobs.token_ids) != token_ids:
                raise RuntimeError("vLLM gave log-probabilities of other tokens than it wrote")
            log_probs = tuple(found.logprobs.logprobs)
        return Sample(token_ids, log_probs, "stop" if stopped else "length")
