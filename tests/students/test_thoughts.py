"""Thoughts of a student: what they see, what they are trained for, and that fewer may be taken."""

import pytest
import torch

from anyo_rl.run.settings import UsageError
from anyo_rl.students import FitSettings, GRU4Rec, SASRec, export, fit_student
from anyo_rl.students.export import export_student, requests
from anyo_rl.students.files import load_student, save_student
from anyo_rl.students.losses import temperatures
from anyo_rl.students.predicted import Predicted
from anyo_rl.students.thoughts import ThinkingSASRec, attend
from anyo_rl.students.training import _Fit, last_states

SHAPE = {"dim": 8, "max_length": 6, "dropout": 0.0}
IDS = [f"i{item}" for item in range(20)]
ROWS_B_T = torch.tensor([[20, 20, 3, 1], [7, 7, 2, 0]])  # item 20 is the padding


def thinker(n_thoughts=3, **changed):
    """A student whose weights are large enough for a thought to change what it says."""
    model = ThinkingSASRec(20, n_thoughts=n_thoughts, seed=1, **(SHAPE | changed)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(10)
    return model


def appended(model, items, n_thoughts):
    """The slow way: thoughts stand behind the items as if they were items, and everything is read again for each."""
    hidden = model.items(torch.tensor(items)) + model.positions.weight[: len(items)]
    for k in range(n_thoughts + 1):
        seen, mask = hidden[None], torch.ones(len(hidden), len(hidden), dtype=torch.bool).tril()[None, None]
        for block in model.blocks:
            seen, _ = block(seen, mask)
        state = model.final_norm(seen)[0, -1]
        if k < n_thoughts:
            hidden = torch.cat([hidden, (state + model.thoughts[k])[None]])
    return state


def test_a_thought_attends_to_what_came_before_and_to_thoughts():
    """By hand: one item seen of two, two thoughts; logits 0, ln 2 and ln 3 give weights 1/6, 2/6 and 3/6."""
    query = torch.tensor([1.0]).view(1, 1, 1, 1)
    keys, values = torch.tensor([0.0, 9.0]).view(1, 1, 2, 1), torch.tensor([6.0, 99.0]).view(1, 1, 2, 1)
    own = [(torch.tensor(float(n)).log().view(1, 1, 1, 1), torch.full((1, 1, 1, 1), 10.0**n)) for n in (2, 3)]
    mask = torch.tensor([True, False]).view(1, 1, 1, 2)
    found = attend(query, (keys, values), own, mask, 0.0)
    assert found.item() == pytest.approx(6 / 6 + 100 * 2 / 6 + 1000 * 3 / 6)


def test_thoughts_are_as_if_they_stood_behind_the_items():
    model = thinker()
    with torch.inference_mode():
        states = model.states(ROWS_B_T)
        for k, state in enumerate(states):
            torch.testing.assert_close(state[1, -1], appended(model, [7, 7, 2, 0], k), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(state[1, 1], appended(model, [7, 7], k), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(state[0, -1], appended(model, [3, 1], k), rtol=1e-4, atol=1e-5)
        assert len(states) == 4
        assert not torch.allclose(states[0], states[1], atol=0.01)
        torch.testing.assert_close(last_states(model, ROWS_B_T), states[-1][:, -1], rtol=1e-4, atol=1e-5)


def test_no_thoughts_are_the_student_that_it_was():
    """The same weights, and bit for bit the same scores, whether it cannot think or was asked not to."""
    plain, thinking = SASRec(20, seed=3, **SHAPE).eval(), ThinkingSASRec(20, n_thoughts=2, seed=3, **SHAPE).eval()
    thinking.think(0)
    histories = [[], [1], [4, 5, 6, 7, 8, 9, 10]]
    assert torch.equal(plain.scores(histories), thinking.scores(histories))
    assert "thoughts" not in plain.state_dict()


def test_the_loss_is_the_mean_over_states_each_at_its_temperature():
    model, settings = thinker(2), FitSettings(thought_annealing=2.0)
    sequences = [[1, 2, 3], [4, 5]]
    found = _Fit(model, sequences, settings, 0, None)._losses([(0, 0, 3), (1, 0, 2)])
    inputs, targets = torch.tensor([[1, 2], [20, 4]]), torch.tensor([2, 3, 5])
    real = inputs != 20
    states = [state[real] for state in model.states(inputs)]
    expected = sum(
        Predicted(model, state / temperature, targets, settings).losses()
        for state, temperature in zip(states, (4.0, 2.0, 1.0), strict=True)
    )
    torch.testing.assert_close(found, expected / 3)
    assert temperatures(1, 2.0) == [1.0]


def test_a_fit_learns_and_fewer_thoughts_are_taken_without_training(tmp_path):
    walks = [[(start + step) % 20 for step in range(6)] for start in range(20)]
    settings = FitSettings(max_epochs=25, batch_size=5, learning_rate=1e-2)
    model = fit_student(ThinkingSASRec, walks, 20, settings, n_thoughts=2, **(SHAPE | {"dim": 16}))
    assert model.thoughts.grad is not None
    assert not torch.equal(model.thoughts, ThinkingSASRec(20, n_thoughts=2, **(SHAPE | {"dim": 16})).thoughts)
    save_student(model, IDS, tmp_path)
    histories, scores = [walk[:-1] for walk in walks], []
    for n_thoughts in (None, 2, 1, 0):
        scores.append(load_student(tmp_path, IDS, n_thoughts).scores(histories))
        assert (scores[-1].argmax(1) == torch.tensor([walk[-1] for walk in walks])).float().mean() > 0.9
    assert torch.equal(scores[0], scores[1])
    assert not torch.allclose(scores[1], scores[2])
    with pytest.raises(UsageError, match="found 3 thoughts, expected 0 to 2"):
        load_student(tmp_path, IDS, 3)
    save_student(GRU4Rec(20, dim=4), IDS, tmp_path / "gru")
    with pytest.raises(UsageError, match="was trained without thoughts"):
        load_student(tmp_path / "gru", IDS, 1)


@pytest.mark.slow
@pytest.mark.parametrize("n_thoughts", [3, 1])
def test_an_exported_student_thinks_as_it_does_here(n_thoughts, tmp_path):
    model = thinker()
    model.think(n_thoughts)
    onnx = all(export.importlib.util.find_spec(name) for name in export.ONNX_PACKAGES)
    export_student(model, IDS, tmp_path, onnx=onnx)
    histories = [[3], [], [1, 2, 3, 4, 5, 6, 7, 8]]
    program = torch.export.load(tmp_path / "student.pt2").module()
    for asked in (histories, histories[:1]):
        torch.testing.assert_close(program(requests(asked, model)), model.scores(asked), atol=1e-4, rtol=1e-4)
    if onnx:
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"items": requests(histories, model).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model.scores(histories), atol=1e-3, rtol=1e-3)
