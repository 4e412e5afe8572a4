import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from anyo_rl.data.sequences import HeldOut
from anyo_rl.metrics import target_ranks
from anyo_rl.students import FitSettings, GRU4Rec, SASRec, fit_student, score_histories
from anyo_rl.students import settings as limits
from anyo_rl.students.choice import mean_ndcg
from anyo_rl.students.predicted import Predicted
from anyo_rl.students.training import pad_left, windows

SMALL = {"dim": 16, "max_length": 6, "dropout": 0.0}
STUDENTS = pytest.mark.parametrize("student", [SASRec, GRU4Rec])
LOSSES = [[2.497034207196303, 2.44049287178147], [2.4855206986548195, 2.4803986885178255]]
TRAINING = {field.name for field in dataclasses.fields(FitSettings)}


def fit_quickly(sequences, n_items, *, kind=SASRec, **told):
    """A fit with the settings of training and the shape in one."""
    settings = FitSettings(**{name: told.pop(name) for name in TRAINING & told.keys()})
    return fit_student(kind, sequences, n_items, settings, **told)


FITS = pytest.mark.parametrize("fit", [fit_quickly, partial(fit_quickly, kind=GRU4Rec)], ids=["sasrec", "gru4rec"])


def cycles(n_users, n_items, seed):
    """Users walk a fixed cycle of the items from a random start: the next item is certain."""
    generator = np.random.default_rng(seed)
    order = np.random.default_rng(99).permutation(n_items).tolist()
    walks = []
    for _ in range(n_users):
        start, length = int(generator.integers(n_items)), int(generator.integers(3, 9))
        walks.append([order[(start + step) % n_items] for step in range(length)])
    return walks


def test_the_same_seed_gives_the_numbers_that_it_gave():
    """Losses of two epochs, as they were written down once: a change of order or draws shows."""
    sequences = cycles(30, 12, seed=0)
    for kind, expected in ((SASRec, LOSSES[0]), (GRU4Rec, LOSSES[1])):
        model = fit_quickly(sequences, 12, kind=kind, seed=3, max_epochs=2, batch_size=8, dim=16, max_length=6)
        assert model.report.losses == pytest.approx(expected, abs=1e-6)


@FITS
def test_learns_a_cycle(fit):
    held_out = cycles(60, 20, seed=1)
    histories, targets = [walk[:-1] for walk in held_out], [walk[-1] for walk in held_out]
    model = fit(
        cycles(100, 20, seed=0), 20, dim=32, dropout=0.1, max_length=6, batch_size=25, learning_rate=1e-2,
        max_epochs=30, patience=3, validation=HeldOut(histories[:30], targets[:30], [[]] * 30),
    )  # fmt: skip
    ranks = target_ranks(model.scores(histories[30:]), targets[30:])
    assert (ranks == 1).mean() > 0.95
    assert model.report.validation_ndcg[model.report.best_epoch - 1] == max(model.report.validation_ndcg)
    assert model.report.losses[-1] < model.report.losses[0] / 2
    assert not model.training


@STUDENTS
def test_scores_do_not_depend_on_batch_or_padding(student):
    model = student(30, seed=3, **SMALL).eval()
    histories = [[1], [4, 4, 4], list(range(20)), [], [7, 2], [29, 0, 5, 6, 1, 9]]
    whole = model.scores(histories)
    assert whole.shape == (6, 30)
    assert whole.dtype == torch.float32
    for batch_size in (1, 2, 5):
        torch.testing.assert_close(score_histories(model, histories, batch_size), whole, rtol=1e-4, atol=1e-5)
    targets = [3] * 6
    alone = [int(target_ranks(model.scores([history]), [3])[0]) for history in histories]
    assert target_ranks(whole, targets).tolist() == alone
    padded = pad_left([[7, 2]], 30, 6)
    more = torch.cat([torch.full((1, 4), 30), padded], dim=1)
    with torch.inference_mode():
        torch.testing.assert_close(model(more)[:, -1], model(padded)[:, -1], rtol=1e-4, atol=1e-5)


@STUDENTS
def test_a_position_does_not_see_what_comes_later(student):
    model = student(30, seed=3, **SMALL).eval()
    with torch.inference_mode():
        first, second = model(torch.tensor([[1, 2, 3, 4]])), model(torch.tensor([[1, 2, 9, 9]]))
    torch.testing.assert_close(first[:, :2], second[:, :2])
    assert not torch.allclose(first[:, 2:], second[:, 2:])


@STUDENTS
def test_only_the_latest_items_are_read(student):
    model = student(30, seed=3, **SMALL).eval()
    scores = model.scores([[9, 8, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    torch.testing.assert_close(scores[0], scores[1])


@FITS
def test_same_seed_same_scores(fit):
    sequences = cycles(20, 12, seed=0)
    settings = {"dim": 16, "max_length": 6, "dropout": 0.3, "max_epochs": 2, "batch_size": 8}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fit(sequences, 12, seed=1, **settings).scores(sequences)
    assert torch.equal(state, torch.get_rng_state())  # the caller's generator is left alone
    torch.manual_seed(6)
    assert torch.equal(first, fit(sequences, 12, seed=1, **settings).scores(sequences))
    assert not torch.allclose(first, fit(sequences, 12, seed=2, **settings).scores(sequences))


@FITS
def test_the_best_weights_are_restored(fit):
    sequences, validation = cycles(30, 12, seed=0), HeldOut([[0], [1], [2]], [3, 4, 5], [[]] * 3)
    settings = {"dim": 16, "max_length": 6, "learning_rate": 3e-2, "batch_size": 8}
    stopped = fit(sequences, 12, validation=validation, max_epochs=12, patience=4, **settings)
    again = fit(sequences, 12, max_epochs=stopped.report.best_epoch, **settings)
    assert len(stopped.report.losses) <= stopped.report.best_epoch + 4
    torch.testing.assert_close(stopped.scores([[0, 1]]), again.scores([[0, 1]]))


class Stubborn(torch.nn.Module):
    """Prefers item 0, then 1, 2, … whatever it read."""

    n_items, max_length = 5, 6

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, items_B_T):
        return torch.zeros(*items_B_T.shape, 1)

    def item_logits(self, hidden):
        return hidden - torch.arange(5.0)

    def scores(self, histories):
        return score_histories(self, histories)


def test_validation_leaves_the_history_out_where_asked():
    histories, targets = [[0, 1], [0]], [2, 0]
    assert mean_ndcg(Stubborn(), HeldOut(histories, targets, [[]] * 2)) == pytest.approx((0.5 + 1) / 2)
    assert mean_ndcg(Stubborn(), HeldOut(histories, targets, histories)) == 1.0  # never the target


@FITS
def test_early_stopping_measures_as_it_is_told(fit):
    sequences, histories, targets = cycles(30, 12, seed=0), [[0, 3], [1, 5], [2, 8]], [3, 4, 5]
    whole, masked = HeldOut(histories, targets, [[]] * 3), HeldOut(histories, targets, histories)
    settings = {"dim": 16, "max_length": 6, "max_epochs": 1, "batch_size": 8}
    for validation in (whole, masked):
        model = fit(sequences, 12, validation=validation, **settings)
        assert model.report.validation_ndcg == [mean_ndcg(model, validation)]
    assert mean_ndcg(model, whole) < mean_ndcg(model, masked)


@STUDENTS
def test_saves_and_loads(student, tmp_path):
    model = student(12, seed=0, **SMALL).eval()
    torch.save({"settings": model.settings, "weights": model.state_dict()}, tmp_path / "student.pt")
    saved = torch.load(tmp_path / "student.pt")
    copy = student(**saved["settings"])
    copy.load_state_dict(saved["weights"])
    assert torch.equal(copy.scores([[1, 2]]), model.scores([[1, 2]]))


@pytest.mark.parametrize("length", range(41))
@pytest.mark.parametrize("max_length", [1, 2, 5])
def test_windows_predict_each_event_once(length, max_length):
    generator = torch.Generator().manual_seed(length)
    for _ in range(5):
        rows = [list(range(start, end)) for _, start, end in windows([list(range(length))], max_length, generator)]
        assert all(2 <= len(row) <= max_length + 1 for row in rows)
        assert all(row == list(range(row[0], row[-1] + 1)) for row in rows)
        assert sorted(item for row in rows for item in row[1:]) == list(range(1, length))


def test_padding():
    assert pad_left([[1, 2, 3], [4], []], 9, 2).tolist() == [[2, 3], [9, 4], [9, 9]]
    assert pad_left([[]], 9, 2).tolist() == [[9]]
    assert pad_left([], 9, 2).shape == (0, 1)


def test_wrong_input_is_an_error():
    with pytest.raises(ValueError, match="index 12 in `sequences` row 1"):
        fit_quickly([[1, 2], [3, 12]], 12, **SMALL)
    with pytest.raises(ValueError, match="no sequence of two or more"):
        fit_quickly([[1], []], 12, **SMALL)
    with pytest.raises(ValueError, match="validation"):
        fit_quickly([[1, 2]], 12, validation=HeldOut([], [], []), **SMALL)
    with pytest.raises(ValueError, match="index -1 in `histories`"):
        SASRec(12, **SMALL).scores([[-1]])
    with pytest.raises(ValueError, match="n_heads=3"):
        SASRec(12, dim=16, n_heads=3)


def test_a_sampled_softmax_is_the_whole_one_on_average(monkeypatch):
    torch.manual_seed(0)
    model, hidden, targets = SASRec(50, seed=1, dim=8), torch.randn(6, 8) * 3, torch.arange(6)
    torch.nn.init.normal_(model.items.weight, std=0.3)

    def next_item_loss(settings):
        return Predicted(model, hidden, targets, settings).losses().mean()

    whole = next_item_loss(FitSettings())
    monkeypatch.setattr(limits, "FULL_SOFTMAX", 10)
    with torch.no_grad():
        logits = model.item_logits(hidden)
        others = torch.stack([logits[i, [j for j in range(50) if j != i]].logsumexp(0) for i in range(6)])
        expected = (torch.logaddexp(logits[range(6), targets], others) - logits[range(6), targets]).mean()
        assert whole.item() == pytest.approx(expected.item(), rel=1e-5)
        few = [next_item_loss(FitSettings(n_negatives=5)).item() for _ in range(400)]
        many = next_item_loss(FitSettings(n_negatives=200_000))
    assert many.item() == pytest.approx(whole.item(), rel=0.02)
    # Few draws are unbiased in the sum; its logarithm lies below on average, by Jensen's inequality.
    assert sum(few) / 400 == pytest.approx(whole.item(), rel=0.2)
    assert sum(few) / 400 < whole.item()


@FITS
def test_a_large_catalog_is_learned_by_samples(fit, monkeypatch):
    monkeypatch.setattr(limits, "FULL_SOFTMAX", 10)
    sequences, held_out = cycles(60, 12, seed=0), cycles(20, 12, seed=1)
    settings = {"dim": 16, "max_length": 6, "dropout": 0.0, "learning_rate": 1e-2, "n_negatives": 8, "batch_size": 8}
    model = fit(sequences, 12, max_epochs=40, **settings)
    ranks = target_ranks(model.scores([walk[:-1] for walk in held_out]), [walk[-1] for walk in held_out])
    assert (ranks == 1).mean() > 0.9
