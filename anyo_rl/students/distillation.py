"""What a teacher said at positions of training sequences, and how a student learns from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anyo_rl.run.settings import UsageError
from anyo_rl.students.losses import alignment, dllm2rec_labels, listwise_kl, soft_labels, union_with_own, within
from anyo_rl.students.predicted import Predicted
from anyo_rl.students.settings import DistillSettings

NO_LESSON = -1


class Rows(Protocol):
    """An array, or what is read like one, row by row, and never has to be in memory as a whole."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray:
        """Some rows."""


@dataclass(frozen=True)
class Lessons:
    """What a teacher said, a row for each (user, position) at which it was asked.

    Attributes:
        user_B: places of the users among the training sequences.
        position_B: place in the user's sequence of the item that is predicted, 1 or more.
        top_items_B_K: the teacher's top items, best first; −1 where there are fewer.
        top_log_probs_B_K: of these, float32; −inf where there is none.
        states_B_D: the teacher's states when it decided, if they were kept.
        reasonings_B_D: vectors of its reasonings, if they were kept.
    """

    user_B: NDArray[np.integer]
    position_B: NDArray[np.integer]
    top_items_B_K: Rows
    top_log_probs_B_K: Rows
    states_B_D: Rows | None = None
    reasonings_B_D: Rows | None = None

    def rows(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """The row of each position of each sequence, `NO_LESSON` where the teacher was not asked.

        Raises:
            UsageError: a row is of a position that no sequence has.
        """
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        users, positions = np.asarray(self.user_B), np.asarray(self.position_B)
        known = (users >= 0) & (users < len(lengths)) & (positions >= 1)
        known[known] = positions[known] < lengths[users[known]]
        if not known.all():
            wrong = int(np.flatnonzero(~known)[0])
            raise UsageError(
                f"the teacher was asked of user {users[wrong]}, position {positions[wrong]}, which the "
                f"{len(lengths)} training sequences do not have: give what it said of this data"
            )
        starts = np.concatenate([[0], np.cumsum(lengths)])
        row_of = np.full(int(starts[-1]), NO_LESSON, dtype=np.int64)
        row_of[starts[users] + positions] = np.arange(len(users))
        return [part.tolist() for part in np.split(row_of, starts[1:-1])]


class Distiller(nn.Module):
    """Adds what a teacher said to a student's loss; its projections are trained with the student, and left behind.

    Args:
        lessons: what the teacher said.
        settings: what counts for how much.
        dim: width of the student's states.
        seed: of the projections.

    Raises:
        UsageError: vectors are asked for that were not kept, or a weight is out of its range.
    """

    def __init__(self, lessons: Lessons, settings: DistillSettings, dim: int, seed: int = 0) -> None:
        super().__init__()
        self.lessons, self.settings = lessons, settings
        if not 0 <= settings.labels <= 1 or settings.temperature <= 0 or min(settings.states, settings.reasonings) < 0:
            raise UsageError(f"found {settings}, expected labels in [0, 1], temperature above 0, no weight below 0")
        self.vectors = {
            "states": (settings.states, lessons.states_B_D),
            "reasonings": (settings.reasonings, lessons.reasonings_B_D),
        }
        self.projections = nn.ModuleDict()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            for name, (weight, vectors_B_D) in self.vectors.items():
                if weight and vectors_B_D is None:
                    raise UsageError(f"{name} has a weight of {weight:g}, and no {name} of the teacher were kept")
                if weight and vectors_B_D is not None:
                    self.projections[name] = nn.Linear(dim, vectors_B_D.shape[1])

    def forward(self, predicted: Predicted, lesson_R: Tensor) -> Tensor:
        """The loss of each position: (R,).

        Args:
            predicted: what the student says there.
            lesson_R: rows of the lessons, `NO_LESSON` for none.
        """
        losses_R = predicted.losses()
        taught_r = (lesson_R != NO_LESSON).nonzero()[:, 0]
        if not len(taught_r):
            return losses_R
        lesson_r = lesson_R[taught_r].cpu().numpy()
        losses_r = losses_R[taught_r]
        if self.settings.labels:
            losses_r = torch.lerp(losses_r, self._list_losses(predicted, taught_r, lesson_r), self.settings.labels)
        for name, projection in self.projections.items():
            weight, vectors_B_D = self.vectors[name]
            assert vectors_B_D is not None, "checked when the projection was made"
            ours_r_D = projection(predicted.hidden_R_D[taught_r])
            theirs_r_D = _taken(vectors_B_D, lesson_r, ours_r_D.device).float()
            losses_r = losses_r + weight * alignment(ours_r_D, theirs_r_D, self.settings.alignment)
        return losses_R.index_put((taught_r,), losses_r)

    def _list_losses(self, predicted: Predicted, taught_r: Tensor, lesson_r: NDArray[np.int64]) -> Tensor:
        settings, device = self.settings, taught_r.device
        items_r_K = _taken(self.lessons.top_items_B_K, lesson_r, device).long()
        log_probs_r_K = _taken(self.lessons.top_log_probs_B_K, lesson_r, device)
        if settings.top:
            items_r_K, log_probs_r_K = items_r_K[:, : settings.top], log_probs_r_K[:, : settings.top]
        labels_r_K = soft_labels(log_probs_r_K.masked_fill(items_r_K < 0, -torch.inf), settings.temperature)
        own_r_K = None
        if settings.within == "union" or settings.gammas[2]:
            own_r_K = predicted.top_items(taught_r, items_r_K.shape[1])
        if any(settings.gammas):
            known_r_K = torch.zeros_like(items_r_K, dtype=torch.bool)
            if own_r_K is not None:
                known_r_K = (items_r_K[:, :, None] == own_r_K[:, None, :]).any(2)
            labels_r_K = dllm2rec_labels(labels_r_K, known_r_K, settings.gammas)
        there_r_K = items_r_K >= 0
        if settings.within == "union" and own_r_K is not None:
            items_r_K, labels_r_K, there_r_K = union_with_own(items_r_K, labels_r_K, own_r_K)
        student_r_K = predicted.log_probs(taught_r, items_r_K.clamp(min=0))
        if settings.within != "catalog":
            student_r_K = within(student_r_K, there_r_K)
        return listwise_kl(student_r_K, labels_r_K)


def _taken(array_B_D: Rows, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Rows of an array that may be a memory map, on a device."""
    return torch.from_numpy(np.ascontiguousarray(array_B_D[rows])).to(device)
