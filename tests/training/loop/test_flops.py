"""Counted FLOPs against PyTorch's own counter, and where they are put."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from trl.trainer.utils import add_fused_lm_head

from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.training.loop.flops import FLOPS, VALIDATION_FLOPS, FlopCounter, Flops, token_flops


def counted(model, run) -> int:
    counter = FlopCounter()
    counter.watch(model)
    run()
    counter.close()
    return counter.total


def seen_by_torch(run) -> int:
    with FlopCounterMode(display=False) as mode:
        run()
    return mode.get_total_flops()


@pytest.fixture
def eager(small_teacher):
    """Eager attention: PyTorch's counter knows its products, and not all kernels of the fused one."""
    model = copy.deepcopy(small_teacher)
    model.set_attn_implementation("eager")
    return model


IDS = torch.randint(5, 50, (3, 17), generator=torch.Generator().manual_seed(0))


def test_a_forward_is_counted_as_torch_counts_it(eager):
    def forward():
        with torch.no_grad():
            eager(IDS, attention_mask=torch.ones_like(IDS))

    assert counted(eager, forward) == pytest.approx(seen_by_torch(forward), rel=1e-3)
    assert counted(eager, lambda: None) == 0


def test_a_backward_costs_twice_its_forward(eager):
    def step():
        eager.train()
        eager(IDS, labels=IDS).loss.backward()

    assert counted(eager, step) == pytest.approx(seen_by_torch(step), rel=0.02)


def test_frozen_weights_have_no_gradient_of_their_own(eager):
    model = get_peft_model(eager, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0))

    def step():
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()

    assert counted(model, step) == pytest.approx(seen_by_torch(step), rel=0.05)


def test_what_gradient_checkpointing_computes_again_counts_again(eager):
    def step():
        eager.train()
        eager(IDS, labels=IDS).loss.backward()

    once = counted(eager, step)
    eager.gradient_checkpointing_enable({"use_reentrant": False})
    again = counted(eager, step)
    assert 1.15 * once < again < 1.34 * once  # the layers, not the head
    assert again == pytest.approx(seen_by_torch(step), rel=0.03)


def test_the_head_that_trl_fuses_with_the_loss_is_seen(eager):
    add_fused_lm_head(eager)

    def step():
        eager.train()
        eager(IDS, labels=IDS, fused_lm_head=True).log_probs.sum().backward()

    # PyTorch's counter passes over products that are added in place: those of the head's two gradients.
    unseen = 2 * 2 * IDS[:, 1:].numel() * eager.lm_head.weight.numel()
    assert counted(eager, step) == pytest.approx(seen_by_torch(step) + unseen, rel=0.001)


def test_sampling_with_a_cache_reads_each_token_once(eager):
    def sample():
        eager.eval().generate(IDS, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)

    n_tokens = 3 * (17 + 3)
    linear = (n_tokens - 3 * 16) * 2 * eager.lm_head.in_features * eager.lm_head.out_features
    body = token_flops(eager) - 2 * eager.lm_head.in_features * eager.lm_head.out_features
    assert counted(eager, sample) == pytest.approx(linear + n_tokens * body, rel=0.15)  # and attention


def test_a_ranking_is_seen(small_catalog, small_teacher, small_tokens):
    ranker = LikelihoodRanker(small_catalog, small_teacher)
    context = [*small_tokens.context_ids("Alien\n"), small_tokens.marker_id]
    assert counted(small_teacher, lambda: ranker.rank([context], ["i1"])) > 0


def test_a_stage_logs_them_and_validations_apart(make_reasoner):
    trainer = make_reasoner(settings={"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1})
    trainer.add_callback(Flops(trainer))
    trainer.train()
    rows = [row for row in trainer.state.log_history if FLOPS in row]
    assert [row["step"] for row in rows] == [1, 1, 2, 2]  # of each step a row of the log, and one of its validation
    assert 0 < rows[0][FLOPS] == rows[1][FLOPS] < rows[2][FLOPS]
    assert 0 < rows[1][VALIDATION_FLOPS] == rows[2][VALIDATION_FLOPS] < rows[3][VALIDATION_FLOPS]
    assert not trainer.flop_counter._hooks


def test_a_run_that_was_killed_goes_on_counting(make_reasoner):
    trainer = make_reasoner()
    callback = Flops(trainer)
    trainer.state.log_history = [{"step": 1, FLOPS: 7e9, VALIDATION_FLOPS: 2e9}, {"step": 1, "eval_mrr": 0.1}]
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert (trainer.flop_counter.total, trainer.flop_counter.validation) == (7_000_000_000, 2_000_000_000)
