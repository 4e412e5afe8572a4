"""The sequence stage: what its rows are, and that their loss is the one of a prompt for each event."""

from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from trl import SFTConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.catalog.semantic_ids import item_tokens, published_ids
from anyo_rl.data.task import DataArguments
from anyo_rl.reasoning.rows import Row, make_prompt
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.search.answers import How
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.policy import set_residual_dropout
from anyo_rl.teacher.tokens import Tokens, add_codes
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.sequence import Reading, SequenceTrainer, sequence_dataset, trunk_mask
from tests.conftest import SMALL_TITLES

ITEMS = pl.DataFrame({"item_id": [f"i{n}" for n in range(10)], "title": SMALL_TITLES})
SEQUENCES = [[0, 3, 0, 1, 9], [5], [2, 4, 6, 8, 7, 5, 3]]
QUIET = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True}


def opened(kind):
    """A task that masks, a catalog whose items go by titles, tokens or codes, and a teacher."""
    ids = None
    if kind != "title":
        codes = [f"<a_{n // 4}><b_{n % 4}>" for n in range(10)]
        made = item_tokens(ITEMS["item_id"].to_list())
        ids = made if kind == "item" else published_ids(ITEMS.with_columns(sid=pl.Series(codes)), "sid")
    tokenizer = train_tokenizer([f" {title}" for title in SMALL_TITLES] * 3, 300)
    if ids is not None:
        add_codes(tokenizer, ids.tokens())
    tokens = Tokens.of(tokenizer)
    args = replace(DataArguments(), mask_history=True, history_as="title" if kind == "title" else "item")
    teacher = make_tiny_teacher(tokenizer, hidden_size=32, n_layers=2, n_heads=2, max_length=256)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3)
    return SimpleNamespace(args=args), build_catalog(ITEMS, tokens, ids), tokens, teacher.eval()


@pytest.fixture(scope="module", params=["item", "semantic_id", "title"])
def world(request):
    return opened(request.param)


def prompt_ids(task, catalog, tokens, items):
    """What `direct` reads before its answer."""
    prompt = make_prompt(task, [f"i{item}" for item in items], catalog, tokens)
    return [*tokens.context_ids(prompt), tokens.marker_id]


def slow_nll(teacher, catalog, context, item, excluded):
    """−log p(item) after a context, token by token: each among what goes on to an item that is not excluded."""
    path, nll = catalog.paths[item], 0.0
    kept = [catalog.paths[other] for other in range(len(catalog)) if other not in excluded]
    with torch.no_grad():
        logits_T_V = teacher(torch.tensor([[*context, *path]])).logits[0].double()
    for depth, token in enumerate(path):
        allowed = sorted({other[depth] for other in kept if other[:depth] == path[:depth]})
        of_step = logits_T_V[len(context) - 1 + depth]
        nll -= float(of_step[token] - of_step[allowed].logsumexp(0))
    return nll


def trainer_of(world, dataset, folder, **settings):
    _, catalog, tokens, teacher = world
    rows = [Row(example_id="u:2", user_id="u", prompt="History:\nNext:\n", history=[], target_id="i3")]
    return SequenceTrainer(
        model=teacher,
        args=SFTConfig(output_dir=str(folder), logging_steps=1, **QUIET, **settings),
        train_dataset=dataset,
        processing_class=tokens.tokenizer,
        catalog=catalog,
        validation=Validation(rows, catalog, tokens, How("plain", Sampling(max_new_tokens=1), top_k=1)),
    )


def test_rows_by_hand():
    """One token an item: the history's lines once, and behind each the rest of the prompt."""
    task, catalog, tokens, _ = opened("item")
    dataset = sequence_dataset(task, [[0, 3, 0, 1]], catalog, tokens, Reading(10))
    row = dataset[0]
    head, foot = tokens.context_ids("History:\n"), [*tokens.context_ids("Next:\n"), tokens.marker_id]
    lines = [tokens.context_ids(f"<i_{item}>\n") for item in (0, 3, 0)]
    assert [len(line) for line in lines] == [2, 2, 2]
    h, f = len(head), len(foot)
    # The third event repeats the first, and no masked ranking holds it: the second and the fourth are asked.
    assert row["input_ids"] == [*head, *lines[0], *lines[1], *lines[2], *foot, *foot]
    assert row["branch"] == [0] * (h + 6) + [1] * f + [3] * f
    assert row["position_ids"] == [*range(h + 6), *range(h + 2, h + 2 + f), *range(h + 6, h + 6 + f)]
    assert row["begin"] == [0] * (h + 6) + [h + 2] * f + [h + 6] * f
    assert row["place"] == [h + 6 + f - 1, h + 6 + 2 * f - 1]
    assert (row["items"], row["n_past"], row["past"]) == ([3, 1], [1, 3], [0, 3, 0])
    # None asked: the same events at the ends of the lines before them.
    row = sequence_dataset(task, [[0, 3, 0, 1]], catalog, tokens, Reading(10, 0.0))[0]
    assert row["input_ids"] == [*head, *lines[0], *lines[1], *lines[2]]
    assert row["place"] == [h + 1, h + 5]
    assert (row["items"], row["n_past"]) == ([3, 1], [1, 3])
    # Unmasked, all of them are targets, and nothing is left out.
    unmasked = SimpleNamespace(args=replace(task.args, mask_history=False))
    row = sequence_dataset(unmasked, [[0, 3, 0, 1]], catalog, tokens, Reading(10))[0]
    assert (row["items"], row["n_past"], row["past"]) == ([3, 0, 1], [0, 0, 0], [])


def test_the_mask_by_hand():
    """Two lines, a branch behind the first and one behind the second, and padding."""
    branch = torch.tensor([[0, 0, 1, 1, 2, -1]])
    position = torch.tensor([[0, 1, 1, 2, 2, 0]])
    begin = torch.tensor([[0, 0, 1, 1, 2, 0]])
    assert trunk_mask(branch, position, begin)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("asked_share", [1.0, 0.4])
def test_windows_predict_each_event_once(asked_share):
    task, catalog, tokens, _ = opened("item")
    long = [[int(item) for item in torch.randperm(10, generator=torch.Generator().manual_seed(n))] for n in range(20)]
    reading = Reading(3, asked_share, cuttings=2)
    dataset = sequence_dataset(task, long, catalog, tokens, reading, seed=1)
    found = []
    for row in dataset:
        ends = len([token for token, branch in zip(row["input_ids"], row["branch"], strict=True) if branch == 0])
        assert ends <= len(tokens.context_ids("History:\n")) + 3 * 2  # at most three events are shown
        for item, n_past in zip(row["items"], row["n_past"], strict=True):
            found.append((tuple(row["past"][:n_past]), item))
    expected = [(tuple(sequence[:n]), sequence[n]) for sequence in long for n in range(1, 10)]
    assert sorted(found) == sorted(expected * 2)
    asked = sum(len(set(row["branch"]) - {0}) for row in dataset) / len(found)
    assert asked == 1 if asked_share == 1 else 0.3 < asked < 0.5
    other = sequence_dataset(task, long, catalog, tokens, reading, seed=2)
    assert [row["input_ids"] for row in other] != [row["input_ids"] for row in dataset]


def test_the_loss_is_that_of_a_prompt_for_each_event(world, tmp_path):
    task, catalog, tokens, teacher = world
    dataset = sequence_dataset(task, SEQUENCES, catalog, tokens, Reading(4))
    trainer = trainer_of(world, dataset, tmp_path, max_steps=1)
    losses, predicted = [], 0
    for row in dataset:
        first = row["n_past"][0] - 1 if row["n_past"][0] > 1 else 0
        for item, n_past in zip(row["items"], row["n_past"], strict=True):
            context = prompt_ids(task, catalog, tokens, row["past"][first:n_past])
            losses.append(slow_nll(teacher, catalog, context, item, set(row["past"][:n_past])))
            predicted += 1
    assert predicted == 3 + 6  # the third event of the first user repeats the first
    batch = trainer.data_collator([dataset[n] for n in range(len(dataset))])
    with torch.no_grad():
        found = trainer.compute_loss(teacher, batch)
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_line_ends_and_prompts_share_one_loss(tmp_path):
    """Events without a branch are read off where their line begins, by the same softmax."""
    world = task, catalog, tokens, teacher = opened("item")
    dataset = sequence_dataset(task, SEQUENCES[2:], catalog, tokens, Reading(9, 0.5), seed=3)
    row, losses = dataset[0], []
    n_asked = len(set(row["branch"]) - {0})
    assert 0 < n_asked < len(row["items"])
    for item, n_past, place in zip(row["items"], row["n_past"], row["place"], strict=True):
        context = prompt_ids(task, catalog, tokens, row["past"][:n_past])
        if row["branch"][place] == 0:
            context = context[: len(context) - len(tokens.context_ids("Next:\n")) - 1]
        losses.append(slow_nll(teacher, catalog, context, item, set(row["past"][:n_past])))
    trainer = trainer_of(world, dataset, tmp_path)
    with torch.no_grad():
        found = trainer.compute_loss(teacher, trainer.data_collator([row]))
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_training_learns_the_sequences_and_measures_ranks(tmp_path):
    world = task, catalog, tokens, teacher = opened("item")
    set_residual_dropout(teacher, 0.1)
    dataset = sequence_dataset(task, SEQUENCES, catalog, tokens, Reading(4, 0.5, cuttings=4))
    settings = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "eval_strategy": "steps"}
    trainer = trainer_of(world, dataset, tmp_path, **settings, eval_steps=12)
    trainer.train()
    rows = trainer.state.log_history
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    assert [0 <= row["eval_ndcg@10"] <= 1 for row in rows if "eval_ndcg@10" in row] == [True]
    each = sum(len(row["input_ids"]) for row in dataset)
    assert len(dataset) == 14  # four steps an epoch: 12 are three
    assert max(row.get("num_tokens", 0) for row in rows) == 3 * each


def test_dropout_is_of_training_alone():
    teacher = opened("item")[-1]
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = teacher(ids).logits
        set_residual_dropout(teacher, 0.5)
        assert torch.equal(teacher(ids).logits, before)
        teacher.train()
        assert not torch.allclose(teacher(ids).logits, before, atol=0.1)
    teacher.get_decoder = torch.nn.Identity
    with pytest.raises(UsageError, match="the layers of Identity are not known: set it to 0"):
        set_residual_dropout(teacher, 0.5)


def test_what_cannot_be_read_as_a_whole_is_refused(world, tmp_path):
    task, catalog, tokens, teacher = world
    with pytest.raises(UsageError, match="none of the 2 training sequences has an event to predict"):
        sequence_dataset(task, [[1], [2, 2]], catalog, tokens, Reading(4))
    with pytest.raises(UsageError, match=r"asked_share is 1\.5: expected 0 to 1"):
        sequence_dataset(task, SEQUENCES, catalog, tokens, Reading(4, 1.5))
    if catalog.by_title:
        with pytest.raises(UsageError, match="items are several tokens"):
            sequence_dataset(task, SEQUENCES, catalog, tokens, Reading(4, 0.5))
    dataset = sequence_dataset(task, SEQUENCES, catalog, tokens, Reading(4))
    with pytest.raises(UsageError, match="packing and padding_free are set"):
        trainer_of(world, dataset, tmp_path, padding_free=True, max_length=None)
    teacher.config.layer_types[0] = "sliding_attention"
    try:
        with pytest.raises(UsageError, match="takes no mask of branches"):
            trainer_of(world, dataset, tmp_path)
    finally:
        teacher.config.layer_types[0] = "full_attention"
