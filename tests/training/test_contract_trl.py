"""What the reasoner trainer takes from inside TRL. Where one of these fails, TRL has changed: read its code anew."""

import ast
import inspect
import textwrap

import pytest
from transformers import Trainer
from trl import GRPOTrainer

from anyo_rl.training.reasoner import ReasonerTrainer

SIGNATURES = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "model", "inputs"],
    "_log_metric": ["self", "name", "value"],
    "_log_completion_extra": ["self", "column", "values"],
    "log": ["self", "logs", "start_time"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_methods_have_the_signatures_relied_on(name):
    assert list(inspect.signature(inspect.unwrap(getattr(GRPOTrainer, name))).parameters) == SIGNATURES[name]


def test_what_is_overridden_is_there_and_takes_what_it_took():
    overridden = [
        name for name, value in vars(ReasonerTrainer).items() if callable(value) and hasattr(GRPOTrainer, name)
    ]
    assert set(overridden) - {"__init__", "__module__"} == {
        *("_calculate_rewards", "_generate_and_score_completions", "_compute_loss", "evaluate"),
        "_get_per_token_logps_and_entropies",
    }
    for name in set(overridden) & set(SIGNATURES):
        assert list(inspect.signature(getattr(ReasonerTrainer, name)).parameters) == SIGNATURES[name]
    assert list(inspect.signature(Trainer.log).parameters) == ["self", "logs", "start_time"]
    assert GRPOTrainer.evaluate is Trainer.evaluate
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
    ["eos_token_ids", "num_generations", "num_generations_eval", "_metrics", "_pending_metrics"],
)
def test_trl_sets_the_attributes(name):
    assert f"self.{name} = " in source(GRPOTrainer.__init__)


def test_trl_reads_and_fills_what_is_relied_on():
    scored = source(GRPOTrainer._generate_and_score_completions)
    for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages"):
        assert f'"{key}"' in scored
    assert "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)" in scored
    # The item loss is divided as the policy loss is.
    assert "self.current_gradient_accumulation_steps" in source(GRPOTrainer._compute_loss)
    # Whatever the output holds is shuffled and cut along with the tokens.
    prepared = source(GRPOTrainer._prepare_inputs)
    assert "shuffle_sequence_dict(" in prepared
    assert "split_tensor_dict(" in prepared


def source(function) -> str:
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    return ast.unparse(ast.parse(text)).replace("'", '"')
