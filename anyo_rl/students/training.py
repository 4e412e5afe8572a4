"""What the students share: padding, the next-item training loop and scoring in batches.

A student is a `torch.nn.Module` with `n_items`, `max_length`, `forward(items_B_T) -> hidden_B_T_D` (causal),
`item_vectors` (N, D) and `item_logits(hidden_*_D) -> logits_*_N`. Items are indices 0..N-1 of the catalog; N is the
padding.

Each user's sequence goes through the model once, and every position predicts the item after it, with the softmax
cross-entropy over the whole catalog; of more than `FULL_SOFTMAX` items, over the target and a sample of the others.
Expanding each prefix into a row of its own, as is common, costs as many forwards as there are events and learns
nothing more.
"""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from anyo_rl.data.sequences import HeldOut
from anyo_rl.students.choice import mean_ndcg

Histories = Sequence[Sequence[int]]
FULL_SOFTMAX = 50_000  # items: 3,200 positions of so many are 640 MB of logits


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


def windows(sequences: Histories, max_length: int, generator: torch.Generator) -> list[list[int]]:
    """Cut each sequence into windows of at most `max_length` + 1 items that overlap by one.

    Each event but a sequence's first is predicted exactly once. The cuts of a long sequence fall at a new random place
    each time, so that no event always has a short context.
    """
    rows: list[list[int]] = []
    for sequence in sequences:
        last = len(sequence) - 1
        start, end = 0, last
        if last > max_length:
            end = 1 + int(torch.randint(0, max_length, (), generator=generator))
        while start < last:
            rows.append(list(sequence[start : end + 1]))
            start, end = end, min(end + max_length, last)
    return rows


def _batches(rows: list[list[int]], batch_size: int, generator: torch.Generator) -> Iterator[list[list[int]]]:
    """Rows of similar length together (little padding), in random order."""
    noise = torch.rand(len(rows), generator=generator).tolist()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]) * (0.8 + 0.4 * noise[i]) + noise[i])
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for index in torch.randperm(len(groups), generator=generator).tolist():
        yield [rows[i] for i in groups[index]]


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
            hidden_B_D = model(items_B_T)[:, -1]
            scores[start : start + batch_size] = model.item_logits(hidden_B_D).float().cpu()  # type: ignore[operator]
    model.train(was_training)
    return scores


@dataclass(frozen=True)
class FitSettings:
    """How a student is trained.

    Attributes:
        max_epochs: most passes over the sequences.
        patience: epochs without a better validation NDCG@10 before it stops.
        batch_size: sequences (windows of at most `max_length` items) in one step.
        learning_rate: of AdamW; warmed up over the first epoch's steps (100 at most), then constant.
        weight_decay: of AdamW, on all weights.
        label_smoothing: share of the target's probability given to the whole catalog, where the softmax is over it.
        n_negatives: items drawn in a step, where the catalog is too large for a softmax over all.
        device: where it is trained, and where the model stays.
    """

    max_epochs: int = 200
    patience: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    n_negatives: int = 8192
    device: str | torch.device = "cpu"


def next_item_loss(model: nn.Module, hidden_R_D: Tensor, targets_R: Tensor, settings: FitSettings) -> Tensor:
    """Mean −log p(target) of R positions.

    Of more than `FULL_SOFTMAX` items the sum over the others is estimated from `n_negatives` of them, drawn alike for
    all positions: each stands for (N − 1) / n of the others, which makes the sum right on average (Jean et al. 2015,
    arXiv 1412.2007, with uniform draws). A draw that is a position's own target is left out there.

    Args:
        model: a student.
        hidden_R_D: its hidden states.
        targets_R: the items after them.
        settings: label smoothing, and how many others are drawn.
    """
    n_items: int = model.n_items  # type: ignore[assignment]
    if n_items <= FULL_SOFTMAX:
        logits_R_N = model.item_logits(hidden_R_D)  # type: ignore[operator]
        return F.cross_entropy(logits_R_N, targets_R, label_smoothing=settings.label_smoothing)
    drawn_n = torch.randint(n_items, (settings.n_negatives,), device=hidden_R_D.device)
    vectors_N_D: Tensor = model.item_vectors  # type: ignore[assignment]
    others_R_n = hidden_R_D @ vectors_N_D[drawn_n].T + math.log((n_items - 1) / settings.n_negatives)
    others_R_n = others_R_n.masked_fill(drawn_n == targets_R[:, None], -torch.inf)
    target_R_1 = (hidden_R_D * vectors_N_D[targets_R]).sum(-1, keepdim=True)
    return (torch.cat([target_R_1, others_R_n], 1).logsumexp(1, keepdim=True) - target_R_1).mean()


def fit_next_item(
    model: nn.Module,
    sequences: Histories,
    settings: FitSettings = FitSettings(),
    *,
    validation: HeldOut | None = None,
    seed: int = 0,
) -> FitReport:
    """Train a student in place on next-item prediction, and leave it in eval mode with its best weights.

    Args:
        model: A student (see the module's docstring).
        sequences: One list of item indices per user, oldest first. Those of fewer than two items teach nothing.
        settings: How.
        validation: For early stopping on NDCG@10 over the whole catalog; the weights of the best epoch are restored.
            `None` trains all epochs and keeps the last.
        seed: Of the order, the windows and the dropout. Two CPU fits with one seed and one number of threads agree.

    Returns:
        A [`FitReport`].

    Raises:
        ValueError: If no sequence has two items, an index is outside the catalog, or the validation set is empty.
    """
    n_items: int = model.n_items  # type: ignore[assignment]
    max_length: int = model.max_length  # type: ignore[assignment]
    check_items(sequences, n_items, "sequences")
    if not any(len(sequence) > 1 for sequence in sequences):
        raise ValueError(f"found no sequence of two or more items among {len(sequences)}, expected at least one")
    if validation is not None:
        if not len(validation):
            raise ValueError(
                "found no example in `validation`, expected one at least: pass None to train without early stopping"
            )
        check_items([validation.targets], n_items, "validation targets")
    started, device, batch_size = time.perf_counter(), settings.device, settings.batch_size
    report = FitReport()
    best_score, best_weights = float("-inf"), None
    generator = torch.Generator().manual_seed(seed)
    model.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    n_rows = len(windows(sequences, max_length, torch.Generator().manual_seed(seed)))
    warmup = min(100, -(-n_rows // batch_size))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices):  # the dropout follows the seed, and the caller's generator is left alone
        torch.manual_seed(seed)
        numbers = range(1, settings.max_epochs + 1)
        epochs = tqdm(numbers, desc=f"{type(model).__name__} epochs", mininterval=5, leave=False)
        for epoch in epochs:
            model.train()
            total, n_targets = torch.zeros((), device=device), 0
            for rows in _batches(windows(sequences, max_length, generator), batch_size, generator):
                items_B_T = pad_left(rows, n_items, max_length + 1, device)
                inputs_B_T, targets_B_T = items_B_T[:, :-1], items_B_T[:, 1:]
                real_B_T = inputs_B_T != n_items
                targets = targets_B_T[real_B_T]
                loss = next_item_loss(model, model(inputs_B_T)[real_B_T], targets, settings)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                total += loss.detach() * len(targets)
                n_targets += len(targets)
            report.losses.append(float(total) / n_targets)
            if validation is None:
                report.best_epoch = epoch
                continue
            score = mean_ndcg(model, validation)
            epochs.set_postfix({"ndcg@10": f"{score:.4f}"}, refresh=False)
            report.validation_ndcg.append(score)
            if score > best_score:
                best_score, report.best_epoch = score, epoch
                best_weights = copy.deepcopy(model.state_dict())
            elif epoch - report.best_epoch >= settings.patience:
                break
    epochs.close()
    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.eval()
    report.seconds = time.perf_counter() - started
    return report
