"""Sampling with transformers' `generate`."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import GenerationConfig

from anyo_rl.ranking.policy import causal_lm, inference
from anyo_rl.sampling.protocol import Sample
from anyo_rl.tokens import Tokens


class TransformersSampler:
    """Samples with the model in hand. The draws depend on how contexts fall into batches.

    Args:
        model: the teacher; wrappers are seen through, weights are read at each call.
        tokens: its tokenizer and marker.
        batch_size: completions generated at once.
        with_log_probs: whether samples carry the log-probability of their tokens.
    """

    def __init__(self, model: nn.Module, tokens: Tokens, batch_size: int = 256, with_log_probs: bool = False) -> None:
        self.model = model
        self.tokens = tokens
        self.batch_size = batch_size
        self.with_log_probs = with_log_probs

    def sample(
        self,
        contexts_B: Sequence[Sequence[int]],
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> list[list[Sample]]:
        """See `anyo_rl.sampling.protocol.Sampler`."""
        config = GenerationConfig(
            do_sample=temperature > 0,
            temperature=float(temperature) if temperature > 0 else None,
            top_p=top_p if temperature > 0 else None,
            top_k=0 if temperature > 0 else None,
            max_new_tokens=max_new_tokens,
            eos_token_id=[self.tokens.eos_id, self.tokens.marker_id],
            pad_token_id=self.tokens.tokenizer.pad_token_id,
            output_logits=self.with_log_probs,
            return_dict_in_generate=True,
        )
        repeated = [list(context) for context in contexts_B for _ in range(n)]
        order = sorted(range(len(repeated)), key=lambda i: len(repeated[i]))  # little padding
        samples: dict[int, Sample] = {}
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with inference(self.model), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                samples.update(zip(batch, self._generate([repeated[i] for i in batch], config), strict=True))
        return [[samples[b * n + g] for g in range(n)] for b in range(len(contexts_B))]

    def _generate(self, contexts: list[list[int]], config: GenerationConfig) -> list[Sample]:
        model = causal_lm(self.model)
        width = max(map(len, contexts))
        pad = self.tokens.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(c)) + c for c in contexts], device=model.device)
        mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], device=model.device)
        # What is not set here, `generate` would take from the checkpoint (top_k, repetition_penalty, beams).
        own, model.generation_config = model.generation_config, GenerationConfig()
        try:
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        finally:
            model.generation_config = own
        new = output.sequences[:, width:]
        log_probs = None
        if self.with_log_probs:  # raw logits: the policy's own numbers at this temperature
            scale = config.temperature if config.do_sample else 1.0
            steps = [torch.log_softmax(step.float() / scale, -1) for step in output.logits]
            log_probs = torch.stack([s.gather(1, new[:, t : t + 1])[:, 0] for t, s in enumerate(steps)], 1).tolist()
        stops = {self.tokens.eos_id, self.tokens.marker_id}
        samples = []
        for row, written in enumerate(new.tolist()):
            end = next((t + 1 for t, token in enumerate(written) if token in stops), None)
            kept = tuple(written[:end])
            samples.append(
                Sample(
                    kept,
                    tuple(log_probs[row][: len(kept)]) if log_probs is not None else None,
                    "length" if end is None else "stop",
                )
            )
        return samples
