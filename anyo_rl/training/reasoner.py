"""The reasoner trainer: TRL's GRPO on reasoning tokens, with ranks by the engine and an item loss for the answer.

The sampled completion stops at the marker: the reasoning is the action. Ranking happens once per batch, before the
rewards, and reaches them as columns. What TRL hooks are used: `_calculate_rewards` (columns in, errors exchanged),
`_generate_and_score_completions` (more columns out), `_compute_loss` (item loss added) and `evaluate`.
Process-supervised GRPO and PPO are other advantages in the same column (`credit`, `ppo`).

With a ranker of written items (`match`, `embedding`) the item is written too, held to the catalog, and is part of the
action: completions come by `rollout_func`, and `_get_per_token_logps_and_entropies` masks the trainer's
log-probabilities as they were sampled.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.protocol import Ranker, Ranking
from anyo_rl.sampling.constrained.constraint import constrained_log_probs
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.advantages.credit import Credit
from anyo_rl.training.advantages.ppo import CRITIC_FACTOR, Ppo, completion_values, with_critic
from anyo_rl.training.critic import recorded_values, split_critic, without_critic
from anyo_rl.training.item_loss import item_log_prob
from anyo_rl.training.loop.guard_rails import FLAT, flat_groups, reward_correlations
from anyo_rl.training.loop.throughput import Clock
from anyo_rl.training.loop.validation import Validation, run_validation
from anyo_rl.training.loop.vllm import colocated_engine, stop_vllm_at_marker
from anyo_rl.training.loop.weights import gathered
from anyo_rl.training.objectives import ItemLoss, item_weights
from anyo_rl.training.rewards.check import DeferredErrors, raise_together
from anyo_rl.training.rewards.probes import Probes

LEAST_ITEM_WEIGHT = 1e-3
SUM_FIRST = "sum_then_normalize"


class ReasonerTrainer(GRPOTrainer):
    """GRPO on the reasoning, with the answer read off by the engine and trained by an item loss.

    Rewards get these columns besides the dataset's own (`None` for a completion without a marker, save `n_items`):
    `rank`, `gain` (1/log2(1 + rank)), `item_id` (the item ranked first), `log_prob` (log p(target | path)), `n_items`.
    Where the item is written `item_id` is that item, and there is no `log_prob`. `anyo_rl.training.rewards.probes` has
    more columns, for the rewards that ask for them.
    The model must stop at the marker, or after the item: see `anyo_rl.teacher.load.stop_at_marker`.

    Args:
        catalog: the catalog.
        tokens: the teacher's tokenizer and marker.
        validation: what is measured at each evaluation.
        written_ranker: ranks what the teacher writes, which goes on to an item then; `None` reads the answer off.
        item_loss: which paths of a group train the answer: `none`, `best`, `all` or `mixture`.
        item_loss_weight: its weight beside the policy loss.
        mask_history: whether items of the history are left out of the ranking.
        credit: what the steps of a reasoning are credited with; `None`: all its tokens with the outcome, as in GRPO.
        ppo: advantages by a critic in place of the group; the model has one then (`anyo_rl.training.critic`).
        rank_cap: ranks beyond it count as the last; `None` for no cap.
        rank_node_budget: tree nodes evaluated for one completion, at most; `None` for no budget.
        reward_funcs: reward callables (DESIGN: TRL's contract). An error in one stops all processes and names it.
        *args, **kwargs: as TRL's.

    Raises:
        ValueError: the model stops at the wrong place, or items are to be written with an item loss or with vLLM.
    """

    def __init__(
        self,
        *args: Any,
        catalog: Catalog,
        tokens: Tokens,
        validation: Validation,
        reward_funcs: Sequence[Callable[..., Any]],
        written_ranker: Ranker | None = None,
        item_loss: ItemLoss = "best",
        item_loss_weight: float = 0.1,
        credit: Credit | None = None,
        ppo: Ppo | None = None,
        mask_history: bool = False,
        rank_cap: int | None = None,
        rank_node_budget: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.catalog = catalog
        self.tokens = tokens
        self.validation = validation
        self.written_ranker = written_ranker
        self.item_loss = item_loss
        self.item_loss_weight = item_loss_weight
        self.credit = credit
        self.ppo = ppo
        self._source = next((way.source for way in (credit, ppo) if way is not None), None)
        self.mask_history = mask_history
        self.rank_cap = rank_cap
        self.rank_node_budget = rank_node_budget
        self.clock = Clock()
        self._probes = Probes(reward_funcs, written=written_ranker is not None)
        self._reward_errors = DeferredErrors()
        if written_ranker is not None:
            if item_loss != "none":
                raise ValueError(
                    "an item loss trains an answer that is read off; set item_loss to none, or ranker to likelihood"
                )
            settings = kwargs["args"]
            if settings.use_vllm or settings.top_k or settings.min_p or settings.repetition_penalty != 1.0:
                raise ValueError(
                    "items are written with transformers, by temperature and top_p alone; unset use_vllm, top_k, "
                    "min_p and repetition_penalty, or set ranker to likelihood"
                )
            kwargs["rollout_func"] = self._write
        kwargs["args"] = stop_vllm_at_marker(kwargs["args"], tokens)
        if ppo is not None:
            kwargs["args"] = with_critic(kwargs["args"])
        with colocated_engine(kwargs["args"], kwargs["model"]):
            super().__init__(
                *args,
                reward_funcs=[self._reward_errors.defer(f) for f in reward_funcs],
                # The trainer insists on an evaluation set; `evaluate` measures ranks instead and never reads it.
                eval_dataset=kwargs["train_dataset"].select([0]),
                **kwargs,
            )
        stops = tokens.marker_id in self.eos_token_ids
        if stops == (written_ranker is not None):
            found = "stops" if stops else "does not stop"
            raise ValueError(f"the teacher {found} at the marker; call stop_at_marker before making the trainer")
        if (credit or ppo) and (written_ranker is not None or self.multi_objective_aggregation != SUM_FIRST):
            raise ValueError(
                f"credit for steps and PPO need an answer that is read off, and rewards that are summed before they "
                f"are normalised: set ranker to likelihood and multi_objective_aggregation to {SUM_FIRST}, or take "
                f"GRPO with advantages outcome"
            )
        if ppo is not None and self.use_vllm:
            names = self.vllm_generation._iter_named_params
            self.vllm_generation._iter_named_params = lambda: without_critic(names())
        self.step_values_B: list[np.ndarray] = []
        self.outcomes_B = np.empty(0)
        self._log_probs_B = torch.empty(0)
        self._rewards_N = torch.empty(0)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """transformers' own, in which a critic has a learning rate of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.ppo is not None:
            learning_rate = self.ppo.critic_learning_rate or CRITIC_FACTOR * self.args.learning_rate
            split_critic(optimizer, self.model, learning_rate)
        return optimizer

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """See `anyo_rl.training.loop.validation.run_validation`."""
        return run_validation(self, self.validation, metric_key_prefix)

    @property
    def _group_size(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    def _sampler(self, model: torch.nn.Module) -> TransformersSampler:
        return TransformersSampler(model, self.tokens, tree=self.catalog.tree)

    def _generate(self, *args, **kwargs):
        with self.clock("sampling"):
            return super()._generate(*args, **kwargs)

    def _write(self, prompts: list[Any], _: Any) -> dict[str, Any]:
        """One completion of each prompt, item included: TRL's `rollout_func`."""
        contexts = [self.tokens.context_ids(prompt) for prompt in prompts]
        # Another draw at each step and in each process, and the same when a run is resumed.
        seed = self.args.seed + (self.state.global_step << 16) + self.accelerator.process_index
        with gathered(self.model_wrapped, self.accelerator) as model:
            samples = self._sampler(model).sample(
                contexts,
                temperature=self.temperature,
                top_p=self.args.top_p,
                max_new_tokens=self.max_completion_length,
                seed=seed,
            )
        return {
            "prompt_ids": contexts,
            "completion_ids": [list(sample.token_ids) for (sample,) in samples],
            # TRL has a use for these with vLLM alone, and they would cost another forward.
            "logprobs": [sample.log_probs for (sample,) in samples] if samples[0][0].log_probs else None,
        }

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        if self.written_ranker is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs
            )
        size = batch_size or len(input_ids)
        parts = []
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            with self.accelerator.autocast():
                logits = model(
                    input_ids=input_ids[rows],
                    attention_mask=attention_mask[rows],
                    logits_to_keep=logits_to_keep + 1,
                    use_cache=False,
                ).logits[:, :-1]
            constraint = self._sampler(model).constraint(
                input_ids.shape[1] - logits_to_keep, self.max_completion_length
            )
            assert constraint is not None
            parts.append(constrained_log_probs(logits, input_ids[rows], constraint, self.temperature))
        padding = attention_mask[:, -logits_to_keep:] == 0
        log_probs, entropies = (torch.cat(part).masked_fill(padding, 0.0) for part in zip(*parts, strict=True))
        return log_probs, entropies if kwargs.get("compute_entropy") else None, None

    def _rank(self, inputs: list[dict], completion_ids: list[list[int]]) -> Ranking:
        """Ranks each completion's target; a completion without a marker is ranked as if it had ended there."""
        targets = [row["target_id"] for row in inputs]
        excluded = [row["history"] for row in inputs] if self.mask_history else None
        if self.written_ranker is not None:
            texts = [self.tokens.decode(ids) for ids in completion_ids]
            return self.written_ranker.rank(texts, targets, top_k=1, excluded_B=excluded)
        contexts = [
            self.tokens.marked_context(self.tokens.context_ids(row["prompt"]), ids)
            for row, ids in zip(inputs, completion_ids, strict=True)
        ]
        began = time.perf_counter()
        with gathered(self.model_wrapped, self.accelerator) as model:
            # Rewards take the numbers as they are and no bracket, so no node is read for the sake of a band.
            ranker = LikelihoodRanker(
                self.catalog, model, cap=self.rank_cap, node_budget=self.rank_node_budget, tie_band=0.0
            )
            ranking = ranker.rank(contexts, targets, top_k=1, excluded_B=excluded)
            self._log_metric("rank/seconds", time.perf_counter() - began)
            self._probes.measure(inputs, completion_ids, ranker, self.tokens, self._log_metric, excluded)
            if self._source is not None:
                began = time.perf_counter()
                self.step_values_B = self._source.values(
                    inputs,
                    completion_ids,
                    TransformersSampler(model, self.tokens),
                    ranker,
                    self.tokens,
                    mask_history=self.mask_history,
                    max_new_tokens=self.max_completion_length,
                    temperature=self.temperature,
                    top_p=self.args.top_p,
                    seed=self.args.seed + self.state.global_step,
                )
                self._log_metric("values/seconds", time.perf_counter() - began)
                self._log_metric("values/first", float(np.mean([values[0] for values in self.step_values_B])))
                self._log_metric("values/last", float(np.mean([values[-1] for values in self.step_values_B])))
        return ranking

    def _rank_together(self, inputs: list[dict], completion_ids: list[list[int]]) -> Ranking:
        """`_rank`, with an error on any process raised on all: the others must not wait in a gather."""
        try:
            ranking = self._rank(inputs, completion_ids)
        except Exception as error:
            raise_together(error, self.accelerator)
            raise
        raise_together(None, self.accelerator)
        return ranking

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self._probes.swap(inputs, completion_ids_list, self.tokens.marker_id, self._group_size, self.accelerator)
        with self.clock("ranking"):
            ranking = self._rank_together(inputs, completion_ids_list)
        marked = [self.tokens.marker_id in ids for ids in completion_ids_list]
        gains = ndcg(ranking.ranks_B)
        log_probs_B = np.full(len(inputs), np.nan) if ranking.log_probs_B is None else ranking.log_probs_B
        ranked = [
            {
                **row,
                "rank": int(ranking.ranks_B[i]) if marked[i] else None,
                "gain": float(gains[i]) if marked[i] else None,
                # An item that was written may be none of the catalog, or left out of the ranking.
                "item_id": next(iter(ranking.top_ids_B_K[i]), None) if marked[i] else None,
                "log_prob": None if not marked[i] or np.isnan(log_probs_B[i]) else float(log_probs_B[i]),
                "n_items": len(self.catalog),
                **self._probes.row(i),
            }
            for i, row in enumerate(inputs)
        ]
        self._log_probs_B = torch.tensor(
            [log_p if ok else torch.nan for log_p, ok in zip(log_probs_B, marked, strict=True)],
            dtype=torch.float32,  # of what has no marker it would be another, and processes gather these
            device=self.accelerator.device,
        )
        # TRL decodes without control tokens, and so without the marker; rewards see what people see.
        texts: list[Any] = [self.tokens.decode(ids) for ids in completion_ids_list]
        if not isinstance(completions[0], str):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        with self.clock("rewards"):
            rewards = super()._calculate_rewards(ranked, prompts, texts, completion_ids_list)
        self._reward_errors.raise_together(self.accelerator)

        for name, value in reward_correlations(rewards, self.reward_func_names).items():
            self._log_metric(name, value)
        self._log_metric("parsed_share", float(np.mean(marked)))
        self._log_metric("ungrounded_share", float(np.mean([row["item_id"] is None for row in ranked])))
        self._log_metric("rank/mean", float(ranking.ranks_B.mean()))
        self._log_metric("rank/gain", float(gains.mean()))
        for name, of_each_B in (("nodes", ranking.n_nodes_B), ("complete_share", ranking.complete_B)):
            if of_each_B is not None:
                self._log_metric(f"rank/{name}", float(of_each_B.mean()))
        self._log_completion_extra("rank", ranking.ranks_B.tolist())
        self.outcomes_B = np.where(marked, gains, 0.0)
        weighted = rewards * self.reward_weights.to(rewards.device)
        self._rewards_N = weighted.nansum(1).masked_fill(rewards.isnan().all(1), torch.nan)
        self._log_metric(FLAT, flat_groups(self._rewards_N, self._group_size))
        return rewards

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        start = self.accelerator.process_index * len(inputs)
        if self.ppo is not None:
            output |= self.ppo.estimates(self, output, self._rewards_N[start : start + len(inputs)])
        if self.credit is not None:
            output["advantages"] = self.credit.token_advantages(
                self.step_values_B,
                self.outcomes_B.tolist(),
                self._rewards_N,
                output["completion_ids"],
                self.tokens,
                self.accelerator,
                group_size=self._group_size,
                scale=self.scale_rewards,
            )
        if self.item_loss != "none":
            everyone = self.accelerator.gather(self._log_probs_B)  # a group may lie on several processes
            weights = item_weights(everyone, self._group_size, self.item_loss)
            output["item_weight"] = weights[start : start + len(inputs)]
            targets = self.catalog.indices([row["target_id"] for row in inputs])
            output["item_index"] = torch.from_numpy(targets).to(self.accelerator.device)
        return output

    def log_probs_and_values(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) log-probabilities of the completions' tokens, and values of the states before them."""
        ids, mask = (
            torch.cat([inputs[f"{part}_{kind}"] for part in ("prompt", "completion")], 1) for kind in ("ids", "mask")
        )
        n_tokens = inputs["completion_ids"].shape[1]
        size = self.args.per_device_train_batch_size
        with recorded_values(self.accelerator.unwrap_model(self.model)) as values:
            log_probs, *_ = self._get_per_token_logps_and_entropies(self.model, ids, mask, n_tokens, size)
        return log_probs, completion_values(values, n_tokens)

    def mean(self, numbers: torch.Tensor, mask: torch.Tensor) -> float:
        """The mean over what the mask leaves, on all processes together."""
        sums = self.accelerator.reduce(torch.stack([(numbers * mask).sum().float(), mask.sum().float()]))
        return (sums[0] / sums[1].clamp(min=1)).item()

    def log_number(self, name: str, number: float) -> None:
        """Logs a number of this batch beside TRL's own; it is the same on all processes."""
        self._metrics["train"][name].append(number)

    def _compute_loss(self, model, inputs):
        if self.ppo is None or not self.model.training:
            loss = super()._compute_loss(model, inputs)
        else:
            beta = self.args.beta
            self.beta = beta if self.ppo.kl == "loss" else 0.0
            try:
                with recorded_values(self.accelerator.unwrap_model(self.model)) as values:
                    loss = super()._compute_loss(model, inputs)
            finally:
                self.beta = beta
            values_B_T = completion_values(values, inputs["completion_ids"].shape[1])
            loss = loss + self.ppo.vf_coef * self.ppo.value_loss(self, inputs, values_B_T)
        if self.item_loss == "none" or not self.model.training:
            return loss
        item_loss = self._item_loss(model, inputs)
        self.log_number("item_loss", self.accelerator.gather(item_loss.detach()).mean().item())
        return loss + self.item_loss_weight * item_loss / self.current_gradient_accumulation_steps

    def _item_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Mean over prompts of the weighted −log p(target | path), by one forward over the paths that take part."""
        weights = inputs["item_weight"]
        # Paths that hardly take part are not worth a forward; but every process must take part in one.
        rows = (weights > LEAST_ITEM_WEIGHT).nonzero().flatten().tolist() or [0]
        contexts = [
            [
                *inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist(),
                *inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].tolist(),
            ]
            for row in rows
        ]
        with self.accelerator.autocast():
            log_p = item_log_prob(
                model,
                self.catalog,
                contexts,
                inputs["item_index"][rows].tolist(),
                pad_id=self.tokens.tokenizer.pad_token_id,
                device=weights.device,
            )
        n_groups = len(weights) / self.num_generations
        return -(weights[rows] * log_p).sum() / n_groups
