"""What the students share: padding, the next-item training loop and scoring in batches.

A student is a `torch.nn.Module` with `n_items`, `max_length`, `forward(items_B_T) -> hidden_B_T_D` (causal),
`item_vectors` (N, D) and `item_logits(hidden_*_D) -> logits_*_N`. Items are indices 0..N-1 of the catalog; N is the
padding. One that thinks before it answers has `states` and `last_states` besides
(`thoughts.ThinkingSASRec`).

Each user's sequence goes through the model once, and every position predicts the item after it, by default with the
softmax cross-entropy over the whole catalog (`settings.FitSettings`). Where a teacher was asked at a position, what it
said is a part of the loss there (`distillation.Distiller`). Expanding each prefix into a row of its own, as is common,
costs as many forwards as there are events and learns nothing more.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm import tqdm

from anyo_rl.data.sequences import HeldOut
from anyo_rl.students.checkpoint import keep, resume
from anyo_rl.students.choice import mean_ndcg
from anyo_rl.students.distillation import NO_LESSON, Distiller
from anyo_rl.students.losses import inverse_propensity, temperatures
from anyo_rl.students.popularity import fit_popularity, propensities
from anyo_rl.students.predicted import Predicted
from anyo_rl.students.settings import FitSettings

Histories = Sequence[Sequence[int]]


@dataclass
class FitReport:
    """What a fit did: seconds, the epoch kept, and validation NDCG@10 after each epoch (empty without validation)."""

    seconds: float = 0.0
    best_epoch: int = 0
    validation_ndcg: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def check_items(sequences: Histories, n_items: int, name: str) -> None:
    """Raise a `ValueError` that names the first item index outside 0..n_items-1."""
    for row, sequence in enumerate(sequences):
        for item in sequence:
            if not 0 <= item < n_items:
                raise ValueError(
                    f"found item index {item} in `{name}` row {row}, expected 0 to {n_items - 1}: "
                    "give indices of the catalog, and drop or add the items that it lacks"
                )


def pad_left(sequences: Histories, padding: int, max_length: int, device: Any = None) -> Tensor:
    """The last `max_length` items of each sequence, padded on the left: (B, T) int64, T at least 1."""
    kept = [list(sequence[-max_length:]) for sequence in sequences]
    width = max([len(row) for row in kept] + [1])
    rows = [[padding] * (width - len(row)) + row for row in kept]
    return torch.tensor(rows, dtype=torch.long, device=device).view(len(rows), width)


Window = tuple[int, int, int]  # the place of a sequence, and where in it the window begins and ends


def windows(sequences: Histories, max_length: int, generator: torch.Generator) -> list[Window]:
    """Cut each sequence into windows of at most `max_length` + 1 items that overlap by one.

    Each event but a sequence's first is predicted exactly once. The cuts of a long sequence fall at a new random place
    each time, so that no event always has a short context.
    """
    found: list[Window] = []
    for place, sequence in enumerate(sequences):
        last = len(sequence) - 1
        start, end = 0, last
        if last > max_length:
            end = 1 + int(torch.randint(0, max_length, (), generator=generator))
        while start < last:
            found.append((place, start, end + 1))
            start, end = end, min(end + max_length, last)
    return found


def _batches(found: list[Window], batch_size: int, generator: torch.Generator) -> Iterator[list[Window]]:
    """Windows of similar length together (little padding), in random order."""
    noise = torch.rand(len(found), generator=generator).tolist()
    lengths = [end - start for _, start, end in found]
    order = sorted(range(len(found)), key=lambda i: lengths[i] * (0.8 + 0.4 * noise[i]) + noise[i])
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for index in torch.randperm(len(groups), generator=generator).tolist():
        yield [found[i] for i in groups[index]]


def states_of(model: nn.Module, items_B_T: Tensor) -> list[Tensor]:
    """A student's states (B, T, D), at once and after each thought: one where it does not think."""
    states: list[Tensor] = model.states(items_B_T) if hasattr(model, "states") else [model(items_B_T)]
    return states


def last_states(model: nn.Module, items_B_T: Tensor) -> Tensor:
    """A student's states (B, D) after histories that are padded on the left."""
    if hasattr(model, "last_states"):  # it thinks, and need not at the other positions
        states_B_D: Tensor = model.last_states(items_B_T)
        return states_B_D
    states_B_T_D: Tensor = model(items_B_T)
    return states_B_T_D[:, -1]


def score_histories(model: nn.Module, histories: Histories, batch_size: int = 256) -> Tensor:
    """Scores of every item as the next one after each history; the same whatever the batch size.

    Args:
        model: A student.
        histories: Item indices, oldest first; an empty history is allowed, and scores as padding alone.
        batch_size: Histories in one forward.

    Returns:
        (B, N) float32 on the CPU.

    Raises:
        ValueError: If an item index is outside the catalog.
    """
    n_items: int = model.n_items  # type: ignore[assignment]
    max_length: int = model.max_length  # type: ignore[assignment]
    check_items(histories, n_items, "histories")
    device = next(model.parameters()).device
    scores = torch.empty(len(histories), n_items)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(histories), batch_size):
            items_B_T = pad_left(histories[start : start + batch_size], n_items, max_length, device)
            hidden_B_D = last_states(model, items_B_T)
            scores[start : start + batch_size] = model.item_logits(hidden_B_D).float().cpu()  # type: ignore[operator]
    model.train(was_training)
    return scores


class _Fit:
    """A fit, epoch by epoch: the student with what else is trained, and all that an epoch changes."""

    def __init__(
        self,
        model: nn.Module,
        sequences: Histories,
        settings: FitSettings,
        seed: int,
        distiller: Distiller | None,
    ) -> None:
        self.model, self.sequences, self.settings, self.distiller = model, sequences, settings, distiller
        self.n_items: int = model.n_items  # type: ignore[assignment]
        self.max_length: int = model.max_length  # type: ignore[assignment]
        self.device = settings.device
        self.generator = torch.Generator().manual_seed(seed)
        self.trained = list(model.to(self.device).parameters())
        self.lessons: list[list[int]] = []
        if distiller is not None:
            self.lessons = distiller.lessons.rows(sequences)
            self.trained += distiller.to(self.device).parameters()
        self.weights_N = self._target_weights()
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        n_rows = len(windows(sequences, self.max_length, torch.Generator().manual_seed(seed)))
        warmup = min(100, -(-n_rows // settings.batch_size))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / warmup))

    def epoch(self) -> float:
        """Each event is predicted once; gives the mean loss."""
        self.model.train()
        total, n_targets = torch.zeros((), device=self.device), 0
        cut = windows(self.sequences, self.max_length, self.generator)
        for batch in _batches(cut, self.settings.batch_size, self.generator):
            with parametrize.cached():  # a fused table is made once a step
                losses_R = self._losses(batch)
                loss = losses_R.mean()
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.scheduler.step()
            total += loss.detach() * len(losses_R)
            n_targets += len(losses_R)
        return float(total) / n_targets

    def _losses(self, batch: Sequence[Window]) -> Tensor:
        """The loss of each position of some windows: (R,)."""
        rows = [self.sequences[place][start:end] for place, start, end in batch]
        items_B_T = pad_left(rows, self.n_items, self.max_length + 1, self.device)
        inputs_B_T, targets_B_T = items_B_T[:, :-1], items_B_T[:, 1:]
        real_B_T = inputs_B_T != self.n_items
        targets_R, lesson_R = targets_B_T[real_B_T], None
        if self.distiller is not None:
            taught = [self.lessons[place][start:end] for place, start, end in batch]
            lesson_R = pad_left(taught, NO_LESSON, self.max_length + 1, self.device)[:, 1:][real_B_T]
        states = states_of(self.model, inputs_B_T)
        softer = temperatures(len(states), self.settings.thought_annealing)
        losses = [
            self._state_losses(state_B_T_D[real_B_T] / temperature, targets_R, lesson_R)
            for state_B_T_D, temperature in zip(states, softer, strict=True)
        ]
        losses_R = torch.stack(losses).mean(0)
        return losses_R if self.weights_N is None else losses_R * self.weights_N[targets_R]

    def _state_losses(self, hidden_R_D: Tensor, targets_R: Tensor, lesson_R: Tensor | None) -> Tensor:
        """The loss after each of some states: (R,)."""
        predicted = Predicted(self.model, hidden_R_D, targets_R, self.settings)
        if self.distiller is None or lesson_R is None:
            return predicted.losses()
        losses_R: Tensor = self.distiller(predicted, lesson_R)
        return losses_R

    def _target_weights(self) -> Tensor | None:
        """What the loss of each target is multiplied by, (N,); `None` where all count alike."""
        if not self.settings.propensity_power:
            return None
        propensities_N = propensities(fit_popularity(self.sequences, self.n_items).counts)
        weights_N = inverse_propensity(propensities_N, self.settings.propensity_power)
        return torch.from_numpy(weights_N).to(self.device)


def fit_next_item(
    model: nn.Module,
    sequences: Histories,
    settings: FitSettings = FitSettings(),
    *,
    validation: HeldOut | None = None,
    seed: int = 0,
    distiller: Distiller | None = None,
) -> FitReport:
    """Train a student in place on next-item prediction, and leave it in eval mode with its best weights.

    Args:
        model: A student (see the module's docstring).
        sequences: One list of item indices per user, oldest first. Those of fewer than two items teach nothing.
        settings: How; `settings.keep_in` says where a fit that was killed goes on from.
        validation: For early stopping on NDCG@10 over the whole catalog; the weights of the best epoch are restored.
            `None` trains all epochs and keeps the last.
        seed: Of the order, the windows and the dropout. Two CPU fits with one seed and one number of threads agree,
            also where one of them was killed and went on.
        distiller: What a teacher said at positions of these sequences, and how much it counts.

    Returns:
        A [`FitReport`].

    Raises:
        ValueError: If no sequence has two items, an index is outside the catalog, or the validation set is empty.
    """
    n_items: int = model.n_items  # type: ignore[assignment]
    check_items(sequences, n_items, "sequences")
    if not any(len(sequence) > 1 for sequence in sequences):
        raise ValueError(f"found no sequence of two or more items among {len(sequences)}, expected at least one")
    if validation is not None:
        if not len(validation):
            raise ValueError(
                "found no example in `validation`, expected one at least: pass None to train without early stopping"
            )
        check_items([validation.targets], n_items, "validation targets")
    device = torch.device(settings.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the caller's generator is left alone
        torch.manual_seed(seed)  # of the dropout
        fit, report, best_weights = _Fit(model, sequences, settings, seed, distiller), FitReport(), None
        kept = [model, *([] if distiller is None else [distiller])], fit.optimizer, fit.scheduler, fit.generator
        if settings.keep_in is not None and (found := resume(settings.keep_in, *kept)) is not None:
            report, best_weights = FitReport(**found.report), found.best_weights
        numbers = range(len(report.losses) + 1, settings.max_epochs + 1)
        epochs = tqdm(numbers, desc=f"{type(model).__name__} epochs", mininterval=5, leave=False)
        for epoch in epochs:
            if validation is not None and epoch - report.best_epoch > settings.patience:
                break
            started = time.perf_counter()
            report.losses.append(fit.epoch())
            if validation is None:
                report.best_epoch = epoch
            else:
                report.validation_ndcg.append(mean_ndcg(model, validation))
                epochs.set_postfix({"ndcg@10": f"{report.validation_ndcg[-1]:.4f}"}, refresh=False)
                if report.validation_ndcg[-1] > max(report.validation_ndcg[:-1], default=float("-inf")):
                    report.best_epoch, best_weights = epoch, copy.deepcopy(model.state_dict())
            report.seconds += time.perf_counter() - started
            if settings.keep_in is not None:
                keep(settings.keep_in, asdict(report), best_weights, *kept)
        epochs.close()
    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.eval()
    return report
