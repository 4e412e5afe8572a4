"""A PRM on a vLLM engine of its own: the same scores as `anyo_rl.values.prm.Prm`, by vLLM's pooling runner.

vLLM makes a token classifier of any causal architecture that it has, and gives back one number for each token of a
sequence; those where a state ends are kept. Nothing of a prefix cache is used: it has no numbers for tokens that are
not read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyo_rl.sampling.vllm.engine import check_heads, make_engine, stop_engine
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.values.prm import check_same_texts, load_tokens, state_positions


@dataclass
class VllmPrm:
    """A trained PRM on a vLLM engine; it takes the place of a `Prm`.

    Attributes:
        llm: a `vllm.LLM` with the pooling runner.
        tokens: the PRM's tokenizer and marker.
    """

    llm: Any
    tokens: Tokens

    @classmethod
    def load(cls, folder: Path | str, *, max_model_len: int, on_gpu: bool | None = None, **settings: Any) -> "VllmPrm":
        """Starts an engine with what `recipes/train_prm.py` saved; `close` stops it.

        Args:
            folder: of the PRM.
            max_model_len: most tokens of a prompt and its completion.
            on_gpu: whether there is a GPU; found out if `None`.
            **settings: others of vLLM's, such as `gpu_memory_utilization`.

        Raises:
            ValueError: there is no PRM in the folder, or vLLM has no code for its attention on the CPU.
        """
        tokens = load_tokens(Path(folder))
        on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
        if not on_gpu:
            check_heads(folder)
        asked = {"runner": "pooling", "enable_prefix_caching": False, "max_model_len": max_model_len, **settings}
        return cls(make_engine(folder, on_gpu=on_gpu, **asked), tokens)

    def scores(
        self, prompt_ids_B: Sequence[Sequence[int]], completion_ids_B: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """What each reasoning is worth before its first step and after each step: see `Prm.scores`."""
        from vllm import PoolingParams

        if not prompt_ids_B:
            return []
        sequences = [[*prompt, *ids] for prompt, ids in zip(prompt_ids_B, completion_ids_B, strict=True)]
        outputs = self.llm.encode(
            [{"prompt_token_ids": sequence} for sequence in sequences],
            PoolingParams(use_activation=False),  # which one vLLM would take depends on the model's config
            pooling_task="token_classify",
            use_tqdm=False,
        )
        found = []
        for sequence, prompt, ids, output in zip(sequences, prompt_ids_B, completion_ids_B, outputs, strict=True):
            logits_W = output.outputs.data.float().reshape(-1)
            if len(logits_W) != len(sequence):
                raise RuntimeError(f"vLLM gave {len(logits_W)} numbers for {len(sequence)} tokens, expected one each")
            at = state_positions(len(prompt), ids, self.tokens)
            found.append(logits_W[at].sigmoid().numpy())
        return found

    def check_texts(self, completion_ids_B: Sequence[Sequence[int]], texts_B: Sequence[str]) -> None:
        """Checks that token ids mean the same to the PRM and to the teacher: see `Prm.check_texts`."""
        check_same_texts(self.tokens, completion_ids_B, texts_B)

    def close(self) -> None:
        """Stops the engine, and gives back its memory."""
        stop_engine(self.llm)
