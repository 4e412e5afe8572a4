"""Alignment tasks in the sequence stage: their loss is that of their prompt, as the sequences' is of theirs."""

import pytest
import torch

from anyo_rl.reasoning.rows import Row
from anyo_rl.training.aligned import aligned_sequences
from anyo_rl.training.lazy import joined
from anyo_rl.training.sequence import Reading, sequence_dataset
from tests.training.test_sequence import SEQUENCES, opened, slow_nll, trainer_of


@pytest.mark.parametrize("kind", ["item", "semantic_id"])
def test_the_loss_of_a_row_is_that_of_its_prompt(kind, tmp_path):
    task, catalog, tokens, teacher = world = opened(kind)
    prompts = {n: f"Title:\n{catalog.titles[n]}\nHistory:\nItem:\n" for n in (3, 8)}
    rows = [Row(f"title:i{n}", "", [], f"i{n}", prompt=prompt) for n, prompt in prompts.items()]
    aligned = aligned_sequences(rows, catalog, tokens)
    both = joined(sequence_dataset(task, SEQUENCES, catalog, tokens, Reading(8)), aligned)
    assert len(both) == len(aligned) + 2
    trainer = trainer_of(world, both, tmp_path)
    batch = trainer._collate([both[len(both) - 2], both[len(both) - 1]])
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
    expected = [
        slow_nll(teacher, catalog, [*tokens.context_ids(prompt), tokens.marker_id], n, ())
        for n, prompt in prompts.items()
    ]
    assert loss.item() == pytest.approx(sum(expected) / 2, abs=1e-4)
