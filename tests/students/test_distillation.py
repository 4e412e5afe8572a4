"""A student that learns from what a teacher said at some positions."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from anyo_rl.students import FitSettings, GRU4Rec, SASRec, fit_student
from anyo_rl.students import settings as limits
from anyo_rl.students.distillation import NO_LESSON, Distiller, Lessons
from anyo_rl.students.fit import Help
from anyo_rl.students.losses import binary_cross_entropy
from anyo_rl.students.predicted import Predicted
from anyo_rl.students.settings import DistillSettings

SEQUENCES = [[0, 1, 2, 3], [4], [5, 6, 7, 8, 9, 0]]
SHAPE = {"dim": 16, "max_length": 6, "dropout": 0.0}


def lessons_at(places, n_top=2, **vectors) -> Lessons:
    """The teacher names item (user + position) % 10 and the next ones, with probabilities that halve."""
    users, positions = map(np.array, zip(*places, strict=True))
    top = (users[:, None] + positions[:, None] + np.arange(n_top)) % 10
    log_probs = np.tile(-np.log(2) * np.arange(1, n_top + 1), (len(users), 1))
    return Lessons(users, positions, top.astype(np.int32), log_probs.astype(np.float32), **vectors)


def everywhere(**more) -> Lessons:
    return lessons_at([(u, p) for u, one in enumerate(SEQUENCES) for p in range(1, len(one))], **more)


def fitted(given, kind=SASRec, shape=SHAPE, **settings):
    how = FitSettings(**{"max_epochs": 3, "batch_size": 2, "learning_rate": 1e-2} | settings)
    return fit_student(kind, SEQUENCES, 10, how, seed=1, given=given, **(SHAPE | shape))


def test_rows_of_positions():
    found = lessons_at([(2, 3), (0, 1), (2, 5)]).rows(SEQUENCES)
    none = NO_LESSON
    assert found == [[none, 1, none, none], [none], [none, none, none, 0, none, 2]]


@pytest.mark.parametrize("place", [(0, 4), (1, 1), (3, 1), (0, 0), (-1, 1)])
def test_a_position_that_there_is_not_is_refused(place):
    with pytest.raises(ValueError, match=rf"user {place[0]}, position {place[1]}, which the 3 training sequences"):
        lessons_at([(0, 1), place]).rows(SEQUENCES)


def predicted_by(hidden, targets, **settings):
    model = SASRec(10, seed=0, **SHAPE)
    torch.nn.init.normal_(model.items.weight, generator=torch.Generator().manual_seed(1))
    return Predicted(model, hidden, targets, FitSettings(**settings))


def test_losses_by_hand():
    """(1 − α) of the next item's loss and α of the list where the teacher was asked, the first alone elsewhere."""
    lessons = lessons_at([(0, 1), (2, 5)])
    hidden, targets = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 0])
    predicted = predicted_by(hidden, targets)
    found = Distiller(lessons, DistillSettings(labels=0.3), 16)(predicted, torch.tensor([0, NO_LESSON, 1]))
    log_probs = (hidden @ predicted.model.item_vectors.T).log_softmax(1)
    plain = -log_probs[range(3), targets]
    q = torch.tensor([2 / 3, 1 / 3])
    first = (q * (q.log() - log_probs[0, [1, 2]])).sum()
    third = (q * (q.log() - log_probs[2, [7, 8]])).sum()
    expected = torch.stack([0.7 * plain[0] + 0.3 * first, plain[1], 0.7 * plain[2] + 0.3 * third])
    torch.testing.assert_close(found, expected)
    alone = Distiller(lessons, DistillSettings(labels=1.0, top=1), 16)(predicted, torch.tensor([0, 1, NO_LESSON]))
    torch.testing.assert_close(alone, torch.stack([-log_probs[0, 1], -log_probs[1, 7], plain[2]]))


def test_states_and_reasonings_are_added_through_projections_of_their_own():
    states, reasonings = np.eye(2, 5, dtype=np.float16), np.ones((2, 3), dtype=np.float16)
    lessons = lessons_at([(0, 1), (2, 5)], states_B_D=states, reasonings_B_D=reasonings)
    hidden = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    predicted = predicted_by(hidden, torch.tensor([1, 0]))
    distiller = Distiller(lessons, DistillSettings(labels=0.0, states=2.0, reasonings=0.5, alignment="mse"), 16)
    found = distiller(predicted, torch.tensor([0, 1]))
    ours = [distiller.projections[name](hidden) for name in ("states", "reasonings")]
    apart = [(one - torch.from_numpy(other).float()).square().mean(1) for one, other in
             zip(ours, (states, reasonings), strict=True)]  # fmt: skip
    torch.testing.assert_close(found, predicted.losses() + 2 * apart[0] + 0.5 * apart[1])
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in distiller.parameters())


def test_no_lesson_no_difference():
    """A teacher that counts for nothing, or was asked of nothing that is in a batch, changes no number."""
    plain = fitted(Help())
    for given in (
        Help(lessons=everywhere(), distillation=DistillSettings(labels=0.0)),
        Help(lessons=lessons_at([(0, 1)]), distillation=DistillSettings(labels=0.0)),
    ):
        assert fitted(given).report.losses == plain.report.losses
    assert fitted(Help(lessons=everywhere())).report.losses != plain.report.losses


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (SASRec, DistillSettings(labels=1.0)),
        (GRU4Rec, DistillSettings(labels=1.0)),
        (SASRec, DistillSettings(labels=1.0, within="list")),
        (SASRec, DistillSettings(labels=1.0, within="union")),
        (SASRec, DistillSettings(labels=1.0, gammas=(0.3, 0.5, 0.1))),
    ],
    ids=["catalog", "gru4rec", "list", "union", "dllm2rec"],
)
def test_the_teacher_is_learned(kind, how):
    """Taught by the list alone, a student orders the list as the teacher does, whatever was chosen."""
    lessons = everywhere(n_top=3)
    student = fitted(Help(lessons=lessons, distillation=how), kind, max_epochs=40, learning_rate=3e-2, batch_size=4)
    histories = [SEQUENCES[u][:p] for u, p in zip(lessons.user_B, lessons.position_B, strict=True)]
    scores = student.scores(histories).numpy()
    listed = np.take_along_axis(scores, lessons.top_items_B_K.astype(np.int64), 1)
    assert (listed[:, 0] > listed[:, 1]).mean() == 1
    assert (listed[:, 1] > listed[:, 2]).mean() >= 0.8
    if how.within != "list":  # which says nothing of other items
        assert (scores.argmax(1) == lessons.top_items_B_K[:, 0]).all()


def test_long_sequences_meet_their_lessons_in_every_window(monkeypatch):
    """A window's rows are those of its positions, however the sequence was cut."""
    asked = []
    forward = Distiller.forward

    def seen(self, predicted, lesson_R):
        lessons = self.lessons
        for target, row in zip(predicted.targets_R.tolist(), lesson_R.tolist(), strict=True):
            assert SEQUENCES[lessons.user_B[row]][lessons.position_B[row]] == target
            asked.append(row)
        return forward(self, predicted, lesson_R)

    monkeypatch.setattr(Distiller, "forward", seen)
    fitted(Help(lessons=everywhere()), shape={"max_length": 2}, max_epochs=4)
    assert sorted(asked) == sorted(list(range(8)) * 4)


def test_a_sample_serves_for_the_list_too(monkeypatch):
    hidden, targets = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0, 5, 6])
    whole = predicted_by(hidden, targets).log_probs(torch.tensor([0, 3]), torch.tensor([[1, 2], [0, 9]]))
    torch.manual_seed(0)
    sampled = predicted_by(hidden, targets, loss="sampled", n_negatives=200_000)
    found = sampled.log_probs(torch.tensor([0, 3]), torch.tensor([[1, 2], [0, 9]]))
    torch.testing.assert_close(found, whole, atol=0.05, rtol=0.05)
    monkeypatch.setattr(limits, "FULL_SOFTMAX", 5)
    with pytest.raises(ValueError, match="of 10 items a sample is looked at: that takes softmax"):
        predicted_by(hidden, targets).top_items(torch.tensor([0]), 2)


@pytest.mark.parametrize(("loss", "calibration"), [("bce", 0.0), ("gbce", 0.5)])
def test_binary_losses_are_of_the_target_and_what_is_drawn(loss, calibration):
    hidden, targets = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0, 5, 6])
    predicted = predicted_by(hidden, targets, loss=loss, n_negatives=3, calibration=0.5)
    torch.manual_seed(7)
    drawn = torch.randint(10, (3,))
    torch.manual_seed(7)
    found = predicted.losses()
    logits = hidden @ predicted.model.item_vectors.T
    others = logits[:, drawn].masked_fill(drawn == targets[:, None], -torch.inf)
    torch.testing.assert_close(found, binary_cross_entropy(logits[range(4), targets], others, 10, calibration))


def test_label_smoothing_is_that_of_torch():
    hidden, targets = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 0, 5, 6])
    predicted = predicted_by(hidden, targets, label_smoothing=0.2)
    expected = cross_entropy(hidden @ predicted.model.item_vectors.T, targets, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(predicted.losses(), expected)


def test_rare_targets_count_for_more_where_asked():
    sequences = [[0, 1]] * 9 + [[0, 2]]
    shares = []
    for power in (0.0, 1.0):
        settings = FitSettings(max_epochs=60, learning_rate=3e-2, propensity_power=power)
        scores = fit_student(SASRec, sequences, 3, settings, **SHAPE).scores([[0]])
        shares.append(scores.softmax(1)[0, 2].item())
    assert shares[0] == pytest.approx(0.1, abs=0.03)
    assert shares[1] == pytest.approx(0.5, abs=0.05)  # nine of weight 1/9 and one of weight 1


def test_wrong_input_is_an_error():
    lessons = everywhere()
    for changed in ({"labels": 1.5}, {"temperature": 0.0}, {"states": -1.0}):
        with pytest.raises(ValueError, match=r"expected labels in \[0, 1\]"):
            Distiller(lessons, dataclasses.replace(DistillSettings(), **changed), 16)
    with pytest.raises(ValueError, match="no states of the teacher were kept"):
        Distiller(lessons, DistillSettings(states=1.0), 16)
