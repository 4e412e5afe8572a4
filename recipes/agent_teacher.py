"""Trains a teacher that calls tools towards a goal: SFT on a few solved plans, then GRPO on its episodes.

    accelerate launch recipes/agent_teacher.py
    accelerate launch recipes/agent_teacher.py --protocol tools --model_name_or_path a/chat-model --output_dir runs/b

With no arguments it runs on a small world of trips whose best plans are known: the agent, the same model without
tools at equal FLOPs, two greedy planners and the optimum, and a report that shows plans being made (docs/agent.md).
Run again, it goes on from where it was; with other arguments it wants another --output_dir.
"""

from pathlib import Path

from trl import GRPOConfig, ModelConfig

from anyo_rl.run.launch import go_on_alone
from anyo_rl.stages.agent import evaluate_agents, show_agents, start_agent, train_agent
from anyo_rl.stages.agent_arguments import AgentArguments
from anyo_rl.stages.begin import begin, plain_errors
from reward.load import load_rewards

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Begin; the agent, the same without tools; evaluate, print."""
    agent_args, model_args, training_args, _ = begin(
        (AgentArguments, ModelConfig, GRPOConfig),
        default_config=CONFIGS / "goals" / "agent_teacher.yaml",
        defaults={"num_generations_eval": 1},
    )
    with plain_errors(ValueError, OSError):
        rewards = load_rewards(agent_args.reward_funcs, agent_args.parameters)
    job = start_agent(agent_args, model_args, training_args)

    teachers = train_agent(job, rewards)
    if agent_args.train_no_tools:
        teachers |= train_agent(job, rewards, with_tools=False)
    if go_on_alone():
        show_agents(job, evaluate_agents(job, teachers))


if __name__ == "__main__":
    main()
