"""The reasoner trainer: TRL's GRPO on reasoning tokens, with ranks by the engine and an item loss for the answer.

The sampled completion stops at the marker: the reasoning is the action. Ranking happens once per batch, before the
rewards, and reaches them as columns. What TRL hooks are used: `_calculate_rewards` (columns in, errors exchanged),
`_generate_and_score_completions` (more columns out), `_compute_loss` (item loss added) and `evaluate`. The first of
them is called by the second, and leaves one `Scored` behind for it.
Process-supervised GRPO and PPO are other advantages in the same column (`anyo_rl.training.advantages`).

With a ranker of written items (`match`, `embedding`) the item is written too, held to the catalog, and is part of the
action: completions come by `rollout_func`, and `_get_per_token_logps_and_entropies` masks the trainer's
log-probabilities as they were sampled. Orders of candidates (`order`) are written freely: TRL samples them.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.completion import parse
from anyo_rl.evidence.fusion import Engine, FusedRanking
from anyo_rl.evidence.reweighing import ReweighedRanker
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.orders import OrderRanking
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.constrained.constraint import constrained_log_probs
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.teacher.policy import causal_lm, divergence_told
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.advantages.batch import Batch, masked_mean, padded_states
from anyo_rl.training.advantages.ppo import CRITIC_FACTOR, Estimates, Ppo
from anyo_rl.training.critic import completion_values, recorded_values, split_critic, with_critic
from anyo_rl.training.item_loss import excluded_items, item_log_prob, item_weights, unpadded
from anyo_rl.training.loop.flops import FlopCounter, token_flops
from anyo_rl.training.loop.guard_rails import FLAT, flat_groups, reward_correlations
from anyo_rl.training.loop.throughput import Clock
from anyo_rl.training.loop.validation import Validation, run_validation
from anyo_rl.training.loop.vllm import colocated_engine, stop_vllm_at_marker, weights_for_vllm
from anyo_rl.training.loop.weights import gathered
from anyo_rl.training.objective import Objective, check_credit, check_writing
from anyo_rl.training.rewards.check import DeferredErrors, raise_together
from anyo_rl.training.rewards.probes import Probes, Written
from anyo_rl.training.scored import Scored

Tensors = dict[str, torch.Tensor]  # a batch as TRL hands it on
Read = tuple[torch.Tensor, torch.Tensor]  # (B, T) log-probabilities of completions' tokens, and values before them

LEAST_ITEM_WEIGHT = 1e-3


class ReasonerTrainer(GRPOTrainer):
    """GRPO on the reasoning, with the answer read off by the engine and trained by an item loss.

    Rewards get these columns besides the dataset's own: `steps`, the lines of the reasoning, and (`None` for a
    completion without a marker, save `n_items`) `rank`, `gain` (1/log2(1 + rank)), `item_id` (the item ranked first),
    `log_prob` (log p(target | path)), `n_items`.
    Where the item is written `item_id` is that item, and there is no `log_prob`. `anyo_rl.training.rewards.probes` has
    more columns, for the rewards that ask for them.
    The model must stop at the marker, or after the item: see `anyo_rl.teacher.load.stop_at_marker`.

    Args:
        catalog: in the model's tokens.
        tokens: the teacher's tokenizer and marker.
        validation: what is measured at each evaluation.
        reward_funcs: reward callables (DESIGN: TRL's contract). An error in one stops all processes and names it.
        objective: what is made of a batch.
        *args, **kwargs: as TRL's.

    Raises:
        ValueError: the model stops at the wrong place, or settings of TRL's do not go with the objective.
    """

    flop_counter: FlopCounter | None = None  # a stage's; see `anyo_rl.training.loop.flops`

    def __init__(
        self,
        *args: Any,
        catalog: Catalog,
        tokens: Tokens,
        validation: Validation,
        reward_funcs: Sequence[Callable[..., Any]],
        objective: Objective,
        **kwargs: Any,
    ) -> None:
        self.catalog = catalog
        self.tokens = tokens
        self.validation = validation
        self.objective = objective
        self.clock = Clock()
        self._probes = Probes(reward_funcs, written=objective.written_ranker is not None)
        self._reward_errors = DeferredErrors()
        if objective.written_ranker is not None:
            check_writing(kwargs["args"])
        if objective.held_to_catalog:
            kwargs["rollout_func"] = self._write
        check_credit(objective.method, kwargs["args"], written=objective.written_ranker is not None)
        kwargs["args"] = stop_vllm_at_marker(kwargs["args"], tokens)
        if objective.ppo is not None:
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
        if stops == (objective.written_ranker is not None):
            found = "stops" if stops else "does not stop"
            raise UsageError(f"the teacher {found} at the marker; call stop_at_marker before making the trainer")
        if self.use_vllm:
            weights = self.vllm_generation._iter_named_params
            self.vllm_generation._iter_named_params = lambda: weights_for_vllm(weights())
        self._scored: Scored | None = None
        self._read_so_far: list[Read] | None = None  # of PPO, while a batch is sampled and scored

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """transformers' own, in which a critic has a learning rate of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.objective.ppo is not None:
            learning_rate = self.objective.ppo.critic_learning_rate or CRITIC_FACTOR * self.args.learning_rate
            split_critic(optimizer, self.model, learning_rate)
        return optimizer

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """See `anyo_rl.training.loop.validation.run_validation`."""
        return run_validation(self, self.validation, metric_key_prefix)

    @property
    def _group_size(self) -> int:
        return self.num_generations if self.model.training else self.num_generations_eval

    def _sampling(self, seed: int) -> Sampling:
        """How completions are sampled, one of each prompt."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.args.top_p,
            max_new_tokens=self.max_completion_length,
            seed=seed,
        )

    def _sampler(self, model: torch.nn.Module) -> TransformersSampler:
        return TransformersSampler(model, self.tokens, self.validation.cache_tokens, tree=self.catalog.tree)

    def _generate(self, *args, **kwargs):
        with self.clock("sampling"), divergence_told():
            return super()._generate(*args, **kwargs)

    def _write(self, prompts: list[Any], _: Any) -> dict[str, Any]:
        """One completion of each prompt, item included: TRL's `rollout_func`."""
        contexts = [self.tokens.context_ids(prompt) for prompt in prompts]
        # Another draw at each step and in each process, and the same when a run is resumed.
        seed = self.args.seed + (self.state.global_step << 16) + self.accelerator.process_index
        with gathered(self.model_wrapped, self.accelerator) as model:
            samples = self._sampler(model).sample(contexts, self._sampling(seed))
        return {
            "prompt_ids": contexts,
            "completion_ids": [list(sample.token_ids) for (sample,) in samples],
            # TRL has a use for these with vLLM alone, and they would cost another forward.
            "logprobs": [sample.log_probs for (sample,) in samples] if samples[0][0].log_probs else None,
        }

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        if not self.objective.held_to_catalog:
            forward = super()._get_per_token_logps_and_entropies
            if self.objective.ppo is None or self._read_so_far is None or model is not self.model:
                return forward(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)
            with recorded_values(self.accelerator.unwrap_model(model)) as values:
                found = forward(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)
            self._read_so_far.append((found[0], completion_values(values, logits_to_keep)))
            return found
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

    def _score(self, rows: list[Row], completion_ids: list[list[int]], partners_B: Sequence[Written | None]) -> Scored:
        """Ranks each completion's target, and asks the engine what else rewards and advantages need."""
        objective = self.objective
        targets = [row.target_id for row in rows]
        excluded = [row.excluded for row in rows]
        marked = [self.tokens.marker_id in ids for ids in completion_ids]
        if (written := objective.written_ranker) is not None:
            texts, ids = map(self.tokens.decode, completion_ids), [row.example_id for row in rows]
            whose = {"example_ids_B": ids} if isinstance(written, ReweighedRanker) else {}
            return Scored.of_written(written.rank(list(texts), targets, top_k=1, excluded_B=excluded, **whose), marked)
        contexts = [
            self.tokens.marked_context(self.tokens.context_ids(row.prompt), ids)
            for row, ids in zip(rows, completion_ids, strict=True)
        ]
        began = time.perf_counter()
        with gathered(self.model_wrapped, self.accelerator) as model:
            # Rewards take the numbers as they are and no bracket, so no node is read for the sake of a band.
            cap, budget = objective.rank_cap, objective.rank_node_budget
            engine = LikelihoodRanker(self.catalog, model, cap=cap, node_budget=budget, tie_band=0.0)
            ranker: Engine = engine if objective.fusion is None else objective.fusion.of(engine)
            ids = [row.example_id for row in rows]
            ranking = ranker.rank(contexts, targets, top_k=1, excluded_B=excluded, example_ids_B=ids)
            scored = Scored(ranking, marked)
            began = self._log_seconds("rank", began)
            scored.probes = self._probes.measure(rows, completion_ids, partners_B, ranker, self.tokens)
            if scored.probes:
                began = self._log_seconds("probes", began)
            if objective.method.source is not None:
                scored.step_values_B = objective.method.source.values(
                    rows,
                    completion_ids,
                    TransformersSampler(model, self.tokens, self.validation.cache_tokens),
                    ranker,
                    self.tokens,
                    self._sampling(self.args.seed + self.state.global_step),
                )
                self._log_seconds("values", began)
                self._log_metric("values/first", float(np.mean([values[0] for values in scored.step_values_B])))
                self._log_metric("values/last", float(np.mean([values[-1] for values in scored.step_values_B])))
        return scored

    def _log_seconds(self, name: str, began: float) -> float:
        """Logs the seconds since then, and gives the time."""
        ended = time.perf_counter()
        self._log_metric(f"{name}/seconds", ended - began)
        return ended

    def _score_together(self, rows: list[Row], completion_ids: list[list[int]]) -> Scored:
        """`_score`, with an error on any process raised on all: the others must not wait in a gather."""
        partners_B = self._probes.partners(
            rows, completion_ids, self.tokens.marker_id, self._group_size, self.accelerator
        )
        try:
            scored = self._score(rows, completion_ids, partners_B)
        except Exception as error:
            raise_together(error, self.accelerator)
            raise
        raise_together(None, self.accelerator)
        return scored

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        with self.clock("ranking"):
            scored = self._score_together([Row.of(columns) for columns in inputs], completion_ids_list)
        if self.use_vllm and self.flop_counter is not None:  # it computes where no counter sees it
            n_tokens = sum(map(len, completion_ids_list)) + sum(len(self.tokens.context_ids(p)) for p in prompts)
            self.flop_counter.add(n_tokens * token_flops(causal_lm(self.model)))
        columns = scored.columns(len(self.catalog))
        # TRL decodes without control tokens, and so without the marker; rewards see what people see.
        texts: list[Any] = [self.tokens.decode(ids) for ids in completion_ids_list]
        ranked = [
            {**given, **found, "steps": list(parse(text).steps)}
            for given, found, text in zip(inputs, columns, texts, strict=True)
        ]
        if not isinstance(completions[0], str):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        with self.clock("rewards"):
            rewards = super()._calculate_rewards(ranked, prompts, texts, completion_ids_list)
        self._reward_errors.raise_together(self.accelerator)
        weighted = rewards * self.reward_weights.to(rewards.device)
        scored.rewards_A = weighted.nansum(1).masked_fill(rewards.isnan().all(1), torch.nan)
        self._log_scored(scored, rewards, columns)
        self._scored = scored
        return rewards

    def _log_scored(self, scored: Scored, rewards: torch.Tensor, columns: list[dict[str, Any]]) -> None:
        ranking = scored.ranking
        for name, value in reward_correlations(rewards, self.reward_func_names).items():
            self._log_metric(name, value)
        self._log_metric("parsed_share", float(np.mean(scored.marked_B)))
        self._log_metric("ungrounded_share", float(np.mean([row["item_id"] is None for row in columns])))
        self._log_metric("rank/mean", float(ranking.ranks_B.mean()))
        self._log_metric("rank/gain", float(scored.gains_B.mean()))
        for name, of_each_B in (("nodes", ranking.n_nodes_B), ("complete_share", ranking.complete_B)):
            if of_each_B is not None:
                self._log_metric(f"rank/{name}", float(of_each_B.mean()))
        if isinstance(ranking, FusedRanking | OrderRanking):
            for name, value in ranking.told().items():
                self._log_metric(f"{ranking.about}/{name}", value)
        self._log_completion_extra("rank", ranking.ranks_B.tolist())
        self._log_metric(FLAT, flat_groups(scored.rewards_A, self._group_size))

    def _generate_and_score_completions(self, inputs):
        self._read_so_far = []
        output = super()._generate_and_score_completions(inputs)
        (scored, self._scored), (read, self._read_so_far) = (self._scored, None), (self._read_so_far, None)
        assert scored is not None, "TRL calculates rewards while it generates"
        batch = self._batch(scored, output)
        method = self.objective.method
        if isinstance(method, Ppo):
            # TRL's forward for the old log-probabilities is its first, where it has a use for one.
            output |= self._estimates(method, batch, output, read[0] if "old_per_token_logps" in output else None)
        else:
            output["advantages"] = method.token_advantages(batch)
        if self.objective.item_loss != "none":
            log_probs_B = torch.tensor(
                scored.log_probs_B,
                dtype=torch.float32,  # of what has no marker it would be another, and processes gather these
                device=self.accelerator.device,
            )
            everyone = self.accelerator.gather(log_probs_B)  # a group may lie on several processes
            output["item_weight"] = item_weights(everyone, self._group_size, self.objective.item_loss)[batch.own]
            targets = self.catalog.indices([row["target_id"] for row in inputs])
            output["item_index"] = torch.from_numpy(targets).to(self.accelerator.device)
            excluded = excluded_items(self.catalog, [Row.of(row).excluded for row in inputs])
            output["excluded_items"] = excluded.to(self.accelerator.device)
        return output

    def _batch(self, scored: Scored, output: Tensors) -> Batch:
        """What advantages are made of; all processes call this together, since a group may lie on several."""
        ids_B_T, device = output["completion_ids"], output["completion_ids"].device
        states_A_S = None
        if scored.step_values_B:
            longest = torch.tensor([max(map(len, scored.step_values_B))], device=device)
            width = int(self.accelerator.gather(longest).max()) + 1
            states_B_S = padded_states(scored.step_values_B, scored.outcomes_B.tolist(), width)
            states_A_S = self.accelerator.gather(states_B_S.to(device))
        assert scored.rewards_A is not None, "rewards were calculated"
        return Batch(
            rewards_A=scored.rewards_A,
            outcome_B=output["advantages"],
            mask_B_T=output["completion_mask"],
            ends_B=[] if states_A_S is None else [self.tokens.step_ends(ids) for ids in ids_B_T.tolist()],
            states_A_S=states_A_S,
            start=self.accelerator.process_index * len(ids_B_T),
            group_size=self._group_size,
            scale=self.scale_rewards,
        )

    def _estimates(self, ppo: Ppo, batch: Batch, output: Tensors, read: Read | None) -> Tensors:
        """PPO's advantages and what its losses read; by a forward of its own where none has read the batch."""
        with torch.no_grad():
            log_probs_B_T, old_B_T = read or self._log_probs_and_values(output)
        penalty_B_T, add_up = None, self.accelerator.reduce
        if self.beta and ppo.kl == "reward":
            divergence_B_T = (log_probs_B_T - output["ref_per_token_logps"]) * batch.mask_B_T
            penalty_B_T = self.beta * divergence_B_T
            self._log_number("kl", masked_mean(divergence_B_T, batch.mask_B_T, add_up))
        estimates = ppo.estimates(batch, old_B_T, penalty_B_T, add_up)
        for name, number in estimates.numbers.items():
            self._log_number(name, number)
        return {name: getattr(estimates, name) for name in ("advantages", "old_values", "returns", "value_mask")}

    def _log_probs_and_values(self, inputs: Tensors) -> Read:
        ids, mask = (
            torch.cat([inputs[f"{part}_{kind}"] for part in ("prompt", "completion")], 1) for kind in ("ids", "mask")
        )
        n_tokens = inputs["completion_ids"].shape[1]
        size = self.args.per_device_train_batch_size
        with recorded_values(self.accelerator.unwrap_model(self.model)) as values:
            log_probs, *_ = self._get_per_token_logps_and_entropies(self.model, ids, mask, n_tokens, size)
        return log_probs, completion_values(values, n_tokens)

    def _log_number(self, name: str, number: float) -> None:
        """Logs a number of this batch beside TRL's own; it is the same on all processes."""
        self._metrics["train"][name].append(number)

    def _compute_loss(self, model, inputs):
        ppo = self.objective.ppo
        if ppo is None or not self.model.training:
            loss = super()._compute_loss(model, inputs)
        else:
            loss = self._ppo_loss(ppo, model, inputs)
        if self.objective.item_loss == "none" or not self.model.training:
            return loss
        item_loss = self._item_loss(model, inputs)
        self._log_number("item_loss", self.accelerator.gather(item_loss.detach()).mean().item())
        return loss + self.objective.item_loss_weight * item_loss / self.current_gradient_accumulation_steps

    def _ppo_loss(self, ppo: Ppo, model: torch.nn.Module, inputs: Tensors) -> torch.Tensor:
        """TRL's clipped policy loss, and the critic's beside it."""
        beta = self.args.beta
        self.beta = beta if ppo.kl == "loss" else 0.0
        try:
            with recorded_values(self.accelerator.unwrap_model(self.model)) as values:
                loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        n_tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        n_tokens = n_tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        estimates = Estimates(
            **{name: inputs[name] for name in ("advantages", "old_values", "returns", "value_mask")}, numbers={}
        )
        values_B_T = completion_values(values, inputs["completion_ids"].shape[1])
        value_loss, numbers = ppo.value_loss(values_B_T, estimates, n_tokens, self.accelerator.reduce)
        for name, number in numbers.items():
            self._log_number(name, number)
        return loss + ppo.vf_coef * value_loss

    def _item_loss(self, model: torch.nn.Module, inputs: Tensors) -> torch.Tensor:
        """Mean over prompts of the weighted −log p(target | path), by one forward over the paths that take part."""
        weights = inputs["item_weight"]
        # Paths that hardly take part are not worth a forward; but every process must take part in one.
        rows = (weights > LEAST_ITEM_WEIGHT).nonzero().flatten().tolist() or [0]
        prompts, completions = (
            unpadded(inputs[f"{of}_ids"][rows], inputs[f"{of}_mask"][rows]) for of in ("prompt", "completion")
        )
        with self.accelerator.autocast():
            log_p = item_log_prob(
                model,
                self.catalog,
                [[*prompt, *told] for prompt, told in zip(prompts, completions, strict=True)],
                inputs["item_index"][rows],
                inputs["excluded_items"][rows],
                pad_id=self.tokens.tokenizer.pad_token_id,
            )
        n_groups = len(weights) / self.num_generations
        return -(weights[rows] * log_p).sum() / n_groups
