"""Sampling with many vLLM engines in a Ray cluster, by Ray Data's LLM stage.

Engines get our token ids and give token ids back: nothing is tokenised there. A request is one completion with a seed
of its own, the same that `VllmSampler` would give it, so the draws do not depend on how many engines there are, nor on
which of them a request comes to.

Ray is imported when it is asked for, so this module is also there without it.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyo_rl.sampling.protocol import Sample, Sampling
from anyo_rl.sampling.seeds import keys_of, request_seed
from anyo_rl.sampling.vllm.engine import engine_environment
from anyo_rl.sampling.vllm.sampler import RAW, check_log_probs, request_settings
from anyo_rl.teacher.tokens import Tokens

logger = logging.getLogger(__name__)

LIGHT = 0.4  # of a core, for rows on their way to the engines and back


def connect(n_cpus: int) -> None:
    """Joins the Ray cluster that `RAY_ADDRESS` names (submitted jobs have it), or starts one on this machine.

    Nothing where this process is in one already. A cluster that is not named is not looked for: Ray's own search also
    finds those of others, and waits for ended ones.

    Args:
        n_cpus: processor cores that a new one counts.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False)
    else:
        ray.init(address="local", num_cpus=n_cpus, include_dashboard=False, log_to_driver=False)


def has_gpus(n_engines: int) -> bool:
    """Whether the cluster that this process is in has GPUs for so many engines, or cores where it has no GPU.

    Raises:
        ValueError: it has too few of them; Ray would wait for more to join.
    """
    import ray

    found = ray.cluster_resources()
    device = "GPU" if found.get("GPU", 0) else "CPU"
    # What stands before and after the engines needs a bit of a core.
    if found.get(device, 0) < n_engines or found.get("CPU", 0) < n_engines + LIGHT:
        raise ValueError(
            f"the Ray cluster has {found.get('GPU', 0):g} GPUs and {found.get('CPU', 0):g} cores, and {n_engines} "
            f"engines take a {device} and a core each, and a bit of one more: start fewer, or more machines"
        )
    return device == "GPU"


class RaySampler:
    """Samples with `n_engines` vLLM engines of a Ray cluster; completions stop at the marker.

    An engine takes half a minute to start, and all of them end with the contexts they were started for. So a job first
    says what it will ask for (`ahead`). `sample` may then ask in any order and parts, and the engines go on meanwhile.

    Args:
        teacher: the teacher's folder, which all machines of the cluster can read, or a model id.
        tokens: its tokenizer and marker.
        settings: what `engine_settings` gives.
        n_engines: engines, each on a GPU of its own, or on a processor core where there are no GPUs.
        on_gpu: whether engines run on GPUs.
        with_log_probs: whether samples carry the log-probability of their tokens.
        batch_size: requests that go to an engine together.
    """

    def __init__(
        self,
        teacher: Path | str,
        tokens: Tokens,
        settings: Mapping[str, Any],
        *,
        n_engines: int,
        on_gpu: bool,
        with_log_probs: bool = False,
        batch_size: int = 64,
    ) -> None:
        self.teacher = str(teacher)
        self.n_engines = n_engines
        self.on_gpu = on_gpu
        self.with_log_probs = with_log_probs
        self.batch_size = batch_size
        self.settings = dict(settings)
        self.stops = [tokens.eos_id, tokens.marker_id]
        self._sampling: Sampling | None = None
        self._found: dict[str, list[Sample | None]] = {}
        self._stream: Iterator[dict[str, Any]] = iter(())

    def ahead(
        self, contexts_B: Sequence[Sequence[int]], sampling: Sampling, *, keys_B: Sequence[str] | None = None
    ) -> None:
        """Says which contexts `sample` will be called with: its first call starts the engines on all of them.

        What was under way before is dropped.

        Args:
            contexts_B: token ids of the prompts.
            sampling: how, as `sample` will be told.
            keys_B: what tells the contexts apart.

        Raises:
            ValueError: a context is empty or too long, or keys are not one for each.
        """
        self._sampling = sampling
        longest = max(map(len, contexts_B), default=0) + sampling.max_new_tokens
        if longest > self.settings["max_model_len"] or any(not context for context in contexts_B):
            raise ValueError(
                f"a context and its completion take up to {longest} tokens, the engines "
                f"{self.settings['max_model_len']}, and none may be empty: raise max_model_len"
            )
        mode = self.settings.get("logprobs_mode", RAW)
        check_log_probs(mode, self.with_log_probs, sampling.temperature, sampling.top_p)
        # Greedy copies are one request.
        drawn = 1 if sampling.temperature == 0 else sampling.n
        keys = keys_of(contexts_B, keys_B)
        self._found = {key: [None] * drawn for key in keys}
        requests = [
            {
                "key": key,
                "index": index,
                "tokenized_prompt": list(context),
                "seed": request_seed(sampling.seed, key) + index,
            }
            for key, context in zip(keys, contexts_B, strict=True)
            for index in range(drawn)
        ]
        self._stream = self._run(requests) if requests else iter(())

    def sample(
        self,
        contexts_B: Sequence[Sequence[int]],
        sampling: Sampling = Sampling(),
        *,
        keys_B: Sequence[str] | None = None,
    ) -> list[list[Sample]]:
        """See `anyo_rl.sampling.protocol.Sampler`. Contexts that `ahead` was not told of start the engines anew.

        Raises:
            ValueError: see `ahead`.
            RuntimeError: the engines ended without all samples.
        """
        keys = keys_of(contexts_B, keys_B)
        if sampling != self._sampling or any(key not in self._found for key in keys):
            self.ahead(contexts_B, sampling, keys_B=keys)
        samples = []
        for key in keys:
            while None in self._found[key]:
                self._receive(key)
            found = [sample for sample in self._found.pop(key) if sample is not None]
            samples.append(found * (sampling.n if sampling.temperature == 0 else 1))
        return samples

    def close(self) -> None:
        """Ends the engines, and leaves the cluster, which ends with this where `connect` started it."""
        import ray

        self._stream = iter(())
        ray.shutdown()

    def _receive(self, wanted: str) -> None:
        row = next(self._stream, None)
        if row is None:
            raise RuntimeError(f"the engines ended without all samples of {wanted}: see the log of the Ray job")
        assert self._sampling is not None, "said by `ahead`"
        token_ids = tuple(map(int, row["token_ids"]))
        stopped = bool(token_ids) and token_ids[-1] in self.stops
        if not stopped and len(token_ids) != self._sampling.max_new_tokens:  # Ray does not pass on why it ended
            raise RuntimeError(
                f"an engine ended a completion after {len(token_ids)} tokens, none of {self.stops} the last: expected "
                f"one, or {self._sampling.max_new_tokens} tokens"
            )
        log_probs = tuple(map(float, row["log_probs"])) if self.with_log_probs else None
        of_key = self._found.get(row["key"])
        if of_key is not None:
            of_key[row["index"]] = Sample(token_ids, log_probs, "stop" if stopped else "length")

    def _run(self, requests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Completions as they arrive, in any order."""
        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        device = {"CPU": 1, "GPU": 1} if self.on_gpu else {"CPU": 1}
        config = vLLMEngineProcessorConfig(
            model_source=self.teacher,
            engine_kwargs=dict(self.settings),
            concurrency=(self.n_engines, self.n_engines),  # a number alone would start with one engine
            batch_size=self.batch_size,
            placement_group_config={"bundles": [device]},  # left out, an engine asks for a GPU
            runtime_env={"env_vars": engine_environment(self.on_gpu)},
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            log_engine_metrics=False,
        )
        assert self._sampling is not None, "said by `ahead`"
        settings = request_settings(self.stops, self.with_log_probs, replace(self._sampling, n=1, seed=0))
        with_log_probs = self.with_log_probs
        # Functions of a function travel by value: the cluster's machines need vLLM and Ray, not this package.
        light = {"num_cpus": LIGHT / 4}  # beside engines that have all cores
        process = build_processor(
            config,
            preprocess=lambda row: {
                "sampling_params": {**settings, "seed": row["seed"] if settings["temperature"] else None}
            },
            postprocess=lambda row: {
                "key": row["key"],
                "index": row["index"],
                "token_ids": row["generated_tokens"],
                "log_probs": [
                    position[token]["logprob"]
                    for position, token in zip(row["logprobs"], row["generated_tokens"], strict=True)
                ]
                if with_log_probs
                else None,
            },
            preprocess_map_kwargs=light,
            postprocess_map_kwargs=light,
        )
        n_blocks = max(1, -(-len(requests) // self.batch_size))
        logger.info("%d requests to %d engines", len(requests), self.n_engines)
        yield from process(ray.data.from_items(requests, override_num_blocks=n_blocks)).iter_rows()
