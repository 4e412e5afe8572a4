"""What a comparison makes itself: fillers, the answers of an ensemble, and the log of what was tried before."""

from types import SimpleNamespace

import polars as pl
import pytest
import torch
from accelerate import PartialState
from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.metrics.ranking import target_ranks
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.compare import ensemble_answers, evaluate_ensemble, fillers
from anyo_rl.stages.job import Job
from anyo_rl.stages.warm_start import open_ended
from anyo_rl.teacher.save import save_teacher


def test_fillers_have_the_lengths_of_rationales():
    """Others are given them in turn."""
    rationales = {"a:1": [("one two", "three"), ("four",)], "c:1": [("five six seven",)]}
    train = pl.DataFrame({"example_id": ["a:1", "b:1", "c:1", "d:1"]})
    found = fillers(SimpleNamespace(task=SimpleNamespace(rationales=rationales, split=lambda name: train)))
    assert found == {
        "a:1": [(". .", "."), (".",)],
        "b:1": [(". . .",)],
        "c:1": [(". . .",)],
        "d:1": [(". . .",)],
    }


def test_an_ensemble_is_the_mean_of_its_members(tmp_path):
    PartialState(cpu=True)
    task = load_task(DataArguments(toy_users=40, toy_categories=4, mask_history=True, max_test=6))
    tiny = TeacherArguments(tiny_hidden_size=16, tiny_layers=1, tiny_vocab_size=400)
    jobs = [Job(tmp_path / f"seed-{seed}", task, ModelConfig(), tiny, seed) for seed in (0, 1)]
    teachers, mean = [], 0.0
    for job in jobs:
        teacher = job.opening.load(None)
        with torch.no_grad():
            for parameter in teacher.model.parameters():
                parameter.mul_(3)  # far from uniform
        rows = job.rows("test", teacher, 6)
        contexts = [[*teacher.tokens.context_ids(row.prompt), teacher.tokens.marker_id] for row in rows]
        mean = mean + DistributionRanker(teacher.catalog, teacher.model).log_probs(contexts).exp()
        catalog = teacher.catalog
        teachers.append(job.teacher_folder("direct"))
        save_teacher(teacher.model, teacher.tokens.tokenizer, teachers[-1])
    excluded = [[catalog.index[item] for item in row.excluded] for row in rows]
    expected = target_ranks(mean.numpy(), [catalog.index[row.target_id] for row in rows], excluded)
    found = ensemble_answers(jobs, teachers)
    assert found.ranks_U.tolist() == expected.tolist()
    assert len(set(found.ranks_U.tolist())) > 2
    for row, top in zip(rows, found.top_ids_U_K, strict=True):
        assert not set(row.excluded) & set(top)
    evaluate_ensemble(jobs, teachers)
    for job in jobs:
        kept = Evaluation(job.folder, task, catalog.item_ids, task.split("test", 6), job.seed).kept(None)
        assert kept["direct_ensemble"]["plain"]["rank"].to_list() == expected.tolist()


def test_a_training_without_an_end_keeps_the_settings_it_was_given(tmp_path):
    args = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=5, learning_rate=0.5)
    longer = open_ended(args, 700)
    assert (longer.max_steps, longer.lr_scheduler_type, longer.learning_rate) == (700, "constant_with_warmup", 0.5)
    assert (args.max_steps, args.lr_scheduler_type) == (5, "linear")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_reinforcement_may_leave_out_what_sft_has_seen(share, tmp_path, monkeypatch):
    """Those with rationales; where all have one there is nothing left, which is said."""
    from anyo_rl.stages import reinforce
    from anyo_rl.stages.arguments import GrpoArguments

    task = load_task(DataArguments(toy_users=40, toy_categories=4, rationale_share=share))
    seen = []
    monkeypatch.setattr(reinforce, "prepare_rewards", lambda rewards, rows, *_: seen.append(rows) or 1 / 0)
    job = Job(tmp_path, task, ModelConfig(), TeacherArguments(tiny_hidden_size=16, tiny_layers=1, tiny_vocab_size=400))
    args = GrpoArguments(held_out_of_sft=True)
    with pytest.raises(ValueError if share else ZeroDivisionError, match="held_out_of_sft" if share else ""):
        reinforce.train_reasoning(job, "grpo", None, args, SimpleNamespace(seed=0), [], args.method())
    assert share or len(seen[0]) == len(task.split("train"))
