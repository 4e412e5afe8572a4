"""What our trainers take from inside TRL. Where one of these fails, TRL has changed: read its code anew."""

import ast
import inspect
import textwrap

import pytest
from transformers import Trainer
from trl import DPOTrainer, GRPOTrainer, SFTTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer.dpo_trainer import DataCollatorForPreference

from anyo_rl.training.dpo import IDS, TeacherDPOTrainer
from anyo_rl.training.reasoner import ReasonerTrainer

SIGNATURES = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_log_metric": ["self", "name", "value"],
    "_log_completion_extra": ["self", "column", "values"],
    "log": ["self", "logs", "start_time"],
}


MOVED = (
    "TRL's GRPOTrainer has changed what the reasoner trainer overrides or reads. Keep the pin in pyproject.toml as it "
    "is, read the method in the new release, then fix anyo_rl/training/reasoner.py (PPO: ppo.py and critic.py beside "
    "it), this list and the pin together, and run tests/training and tests/recipes"
)


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_methods_have_the_signatures_relied_on(name):
    assert list(inspect.signature(inspect.unwrap(getattr(GRPOTrainer, name))).parameters) == SIGNATURES[name], MOVED


def test_ppo_finds_what_it_reads():
    """Advantages by token, a forward through the decoder, one place for the divergence, and weights by their names."""
    loss = source(GRPOTrainer._compute_loss)
    assert "if advantages.dim() == 1:" in loss, MOVED
    assert loss.count("self._get_per_token_logps_and_entropies(") == 1, MOVED
    assert "if self.beta != 0.0:" in loss, MOVED
    assert '"num_items_in_batch"' in loss, MOVED
    assert "self.current_gradient_accumulation_steps / self.args.steps_per_generation" in loss, MOVED
    forward = source(GRPOTrainer._get_per_token_logps_and_entropies)
    assert "outputs = model(**model_inputs, labels=labels, fused_lm_head=True)" in forward, MOVED
    scored = source(GRPOTrainer._generate_and_score_completions)
    assert all(f'output["{name}"]' in scored for name in ("ref_per_token_logps", "old_per_token_logps")), MOVED
    assert "self.vllm_generation = VLLMGeneration(" in source(GRPOTrainer.__init__), MOVED
    assert source(VLLMGeneration.sync_weights).count("self._iter_named_params()") == 4, MOVED


def test_what_is_overridden_is_there_and_takes_what_it_took():
    overridden = [
        name for name, value in vars(ReasonerTrainer).items() if callable(value) and hasattr(GRPOTrainer, name)
    ]
    assert set(overridden) - {"__init__", "__module__"} == {
        *("_calculate_rewards", "_generate_and_score_completions", "_compute_loss", "evaluate"),
        *("_get_per_token_logps_and_entropies", "_generate", "create_optimizer"),
    }
    for name in set(overridden) & set(SIGNATURES):
        assert list(inspect.signature(getattr(ReasonerTrainer, name)).parameters) == SIGNATURES[name], MOVED
    assert list(inspect.signature(Trainer.log).parameters) == ["self", "logs", "start_time"], MOVED
    assert GRPOTrainer.evaluate is Trainer.evaluate, MOVED
    assert {
        "model",
        "args",
        "train_dataset",
        "eval_dataset",
        "reward_funcs",
        "peft_config",
        "processing_class",
    } <= set(inspect.signature(GRPOTrainer.__init__).parameters)


@pytest.mark.parametrize(
    "name",
    ["eos_token_ids", "num_generations", "num_generations_eval", "reward_weights", "_metrics", "_pending_metrics"],
)
def test_trl_sets_the_attributes(name):
    assert f"self.{name} = " in source(GRPOTrainer.__init__), MOVED


def test_trl_reads_and_fills_what_is_relied_on():
    scored = source(GRPOTrainer._generate_and_score_completions)
    for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages"):
        assert f'"{key}"' in scored, MOVED
    assert "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)" in scored, MOVED
    assert "self._generate(prompts)" in scored, MOVED  # which is timed
    # Schedules set the weights in place, and the swap of reasonings counts on groups in a row.
    assert "self.reward_weights.to(device)" in scored, MOVED
    assert "rewards.view(-1, num_generations)" in scored, MOVED
    # The item loss is divided as the policy loss is.
    assert "self.current_gradient_accumulation_steps" in source(GRPOTrainer._compute_loss), MOVED
    # Whatever the output holds is shuffled and cut along with the tokens.
    prepared = source(GRPOTrainer._prepare_inputs)
    assert "shuffle_sequence_dict(" in prepared, MOVED
    assert "split_tensor_dict(" in prepared, MOVED


def test_trl_counts_tokens_where_throughput_looks():
    assert "self.state.num_input_tokens_seen += " in source(GRPOTrainer._generate), MOVED
    for trainer in (SFTTrainer, DPOTrainer):
        assert "self._total_train_tokens += " in inspect.getsource(trainer), MOVED


def test_vllm_is_told_and_reached_as_relied_on():
    built = source(GRPOTrainer.__init__)
    assert "self.vllm_generation = VLLMGeneration(" in built, MOVED
    assert "generation_kwargs=args.generation_kwargs" in built, MOVED
    engine = source(VLLMGeneration._init_vllm)
    assert "self.llm = LLM(model=model.name_or_path" in engine, MOVED
    assert "seed=accelerator.process_index // self.tensor_parallel_size" in engine, MOVED


DPO_SIGNATURES = {
    "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "_set_signature_columns_if_needed": ["self"],
    "_compute_loss": ["self", "model", "inputs", "return_outputs"],
}
MEND = (
    "TRL's DPOTrainer has changed how it gets its token ids. Pairs must be trained on the ids that were sampled: find "
    "where it tokenises now, and hand prompt_ids, chosen_ids and rejected_ids over there (anyo_rl/training/dpo.py)"
)


def test_dpo_takes_the_token_ids_of_its_dataset():
    for name, parameters in DPO_SIGNATURES.items():
        assert list(inspect.signature(getattr(DPOTrainer, name)).parameters) == parameters, MEND
    built = source(DPOTrainer.__init__)
    # The one place where it tokenises, and it goes on with what comes back.
    assert 'train_dataset = self._prepare_dataset(train_dataset, processing_class, args, "train")' in built, MEND
    assert "DataCollatorForPreference(" in built, MEND
    columns = source(DPOTrainer._set_signature_columns_if_needed)
    assert all(f'"{name}"' in columns for name in (*IDS, "ref_chosen_logps", "ref_rejected_logps")), MEND
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5], "target_id": "i1"}
    batch = DataCollatorForPreference(pad_token_id=0)([pair])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [1, 2, 5, 0]], MEND
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]], MEND


def test_what_the_dpo_trainer_overrides_is_there():
    overridden = [
        name for name, value in vars(TeacherDPOTrainer).items() if callable(value) and hasattr(DPOTrainer, name)
    ]
    assert set(overridden) - {"__init__", "__module__"} == {*DPO_SIGNATURES, "evaluate"}
    assert "self._metrics = " in source(DPOTrainer.__init__)  # the item loss is logged there
    # The loss is a mean over the batch and divided by accumulation steps outside, and so is the item loss.
    assert DPOTrainer.loss_is_scaled_for_ga is False
    assert "per_sequence_loss.mean()" in source(DPOTrainer._compute_loss)


def source(function) -> str:
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    return ast.unparse(ast.parse(text)).replace("'", '"')
