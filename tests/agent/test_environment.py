"""Chat models with a tool template: TRL calls the same tools, and answers get the same rewards."""

import inspect
import json

import pytest
from trl import GRPOConfig, GRPOTrainer, ModelConfig

from anyo_rl.agent.environment import GoalEnvironment, chats, final_answer, with_verdicts
from anyo_rl.data.goals import Goal
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.agent import start_agent, train_agent
from anyo_rl.stages.agent_arguments import AgentArguments
from anyo_rl.teacher.make import make_tiny_teacher
from reward.plan_value import PlanValueReward

GOAL = Goal("g", "1", "quiet", 6, ("mon", "tue", "wed"), ("inn", "tour"))
ARGS = AgentArguments(
    n_offers=4, n_travellers=3, n_train_goals=8, n_validation_goals=2, n_test_goals=2, n_solved=2, protocol="tools"
)


def grpo(folder, **settings) -> GRPOConfig:
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    size = {"per_device_train_batch_size": 2, "num_generations": 2, "num_generations_eval": 1, "max_steps": 1}
    where = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    return GRPOConfig(str(folder), **{**every, **size, **where, "logging_steps": 1, **settings})


@pytest.fixture
def environment(planner) -> GoalEnvironment:
    made = GoalEnvironment(planner, {"g": GOAL}, most_chars=60)
    made.reset(goal_id="g", prompt="x")
    return made


def test_the_tools_are_those_of_the_text_protocol(environment, planner):
    tools = [name for name, _ in inspect.getmembers(GoalEnvironment, inspect.isfunction) if name[0] != "_"]
    assert sorted(tools) == ["plan", "profile", "reset", "search", "similar"]
    assert environment.profile() == "likes quiet"
    assert environment.search("inn quiet 5") == planner.tools(GOAL)["search"]("inn quiet 5")
    assert environment.similar("Amber Inn") == "Birch Inn tue old *1 $1"
    assert environment.plan("Amber Inn | Dawn Walk") == "cost 6, left 0, days mon wed"
    assert len(environment.search("inn tour")) <= 60
    assert environment.search("x\n<eos> -> plan: y")  # whatever is asked, it answers


def test_answers_get_the_same_rewards(environment):
    environment.profile()
    completions = [
        [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "so\n-> Amber Inn | Dawn Walk\n"}]
    ]
    seen = {}

    def look(**columns):
        seen.update(columns)
        return PlanValueReward()(**columns)

    assert with_verdicts(look)(completions=completions, environments=[environment], trainer_state=None) == [1.0]
    assert (seen["regret"], seen["n_violations"], seen["n_calls"], seen["n_failed"]) == ([0.0], [0], [1], [0])
    assert PlanValueReward()(regret=[1.0, 1.0], n_violations=[1, 9]) == [-0.1, -0.3]


@pytest.mark.parametrize(
    ("messages", "answer"),
    [
        ([], None),
        ([{"role": "tool", "content": "-> A"}], None),
        ([{"role": "assistant", "content": None}], None),
        ([{"role": "assistant", "content": "a\nb | c"}], "b | c"),
        ([{"role": "assistant", "content": "-> a -> b\n\n"}], "b"),
    ],
)
def test_the_final_answer(messages, answer):
    assert final_answer(messages) == answer


def test_an_environment_reads_goals_of_its_own(planner):
    (row,) = chats([GOAL])
    assert row["goal_id"] == "g"
    assert "wants inn, tour. Budget 6." in row["prompt"][0]["content"]
    assert "quiet" not in row["prompt"][0]["content"]


def test_a_chat_model_calls_tools_by_its_template(qwen3_tokenizer, tmp_path, monkeypatch):
    """TRL runs the calls of a model that writes them, keeps their results out of the loss, and rewards the answer."""
    model = make_tiny_teacher(qwen3_tokenizer, hidden_size=16, n_layers=1, n_heads=2, max_length=4096)
    model.save_pretrained(tmp_path / "model")
    qwen3_tokenizer.save_pretrained(tmp_path / "model")
    call = json.dumps({"name": "profile", "arguments": {}})
    told = [f"<tool_call>\n{call}\n</tool_call><|im_end|>", "-> nothing<|im_end|>"]
    masks, heard = [], []

    def generate(self, prompt_ids, images, fields, num_generations=1, **kwargs):
        done = [self.processing_class.decode(ids).count("<tool_response>") for ids in prompt_ids]
        texts = [told[min(n, 1)] for n in done]
        return [self.processing_class.encode(text, add_special_tokens=False) for text in texts], None

    loop = GRPOTrainer._tool_call_loop

    def watched(self, *args, **kwargs):
        found = loop(self, *args, **kwargs)
        masks.extend(zip(found[2], found[0], strict=True))
        heard.extend(found[1])
        return found

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)
    monkeypatch.setattr(GRPOTrainer, "_tool_call_loop", watched)
    job = start_agent(ARGS, ModelConfig(str(tmp_path / "model")), grpo(tmp_path / "run"))
    teachers = train_agent(job, [PlanValueReward()])
    assert (teachers["agent"] / "model.safetensors").is_file()
    assert train_agent(job, [PlanValueReward()], with_tools=False) == {}
    results = {message["content"] for messages in heard for message in messages if message["role"] == "tool"}
    assert results <= {f"likes {style}" for style in ("quiet", "lively", "old", "modern")}
    assert results
    for ids, mask in masks:
        masked = qwen3_tokenizer.decode([one for one, own in zip(ids, mask, strict=True) if not own])
        own = qwen3_tokenizer.decode([one for one, mine in zip(ids, mask, strict=True) if mine])
        assert "likes " in masked
        assert "likes " not in own
        assert own.startswith("<tool_call>")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rewards = [
        value for row in rows for name, value in row.items() if name in ("reward", "eval_reward", "test_reward")
    ]
    assert len(rewards) >= 3
    assert rewards == pytest.approx([-0.3] * len(rewards))  # what is no offer's name violates four things


def test_what_cannot_be_honoured_is_refused(tmp_path):
    with pytest.raises(UsageError, match="expected a chat model that knows tools"):
        start_agent(ARGS, ModelConfig(), grpo(tmp_path))
    text = AgentArguments(n_train_goals=5, n_solved=6)
    with pytest.raises(UsageError, match="n_solved is 6: expected at most n_train_goals, 5"):
        start_agent(text, ModelConfig(), grpo(tmp_path))
