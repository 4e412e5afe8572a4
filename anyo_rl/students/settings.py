"""How students are trained, and how they learn from a teacher: settings alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from anyo_rl.students.losses import Alignment

Loss = Literal["softmax", "sampled", "bce", "gbce"]
FULL_SOFTMAX = 50_000  # items: 3,200 positions of so many are 640 MB of logits


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
        loss: `softmax` over the whole catalog, up to `FULL_SOFTMAX` items; `sampled`, over the target and
            `n_negatives` drawn items with the correction for what was not drawn, which is taken beyond that; `bce`, a
            binary loss of the target and drawn items; `gbce`, the same with gSASRec's calibration.
        n_negatives: items drawn in a step, alike for all its positions, where not all are looked at.
        calibration: t of `gbce`, 0 to 1; see `losses.binary_cross_entropy`.
        propensity_power: above 0 rare targets count for more; see `losses.inverse_propensity`.
        thought_annealing: how much softer each thought's prediction is than that of the next one, for students that
            think; see `thoughts.temperatures`.
        device: where it is trained, and where the model stays.
        keep_in: a file in which the fit is kept after each epoch, so that a killed one goes on; `None` for none.
    """

    max_epochs: int = 200
    patience: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    loss: Loss = "softmax"
    n_negatives: int = 8192
    calibration: float = 0.75
    propensity_power: float = 0.0
    thought_annealing: float = 1.2
    device: str | torch.device = "cpu"
    keep_in: Path | None = None


@dataclass(frozen=True)
class DistillSettings:
    """How a student learns from a teacher, at the positions at which the teacher was asked.

    There the loss is (1 − labels) · (loss of the item chosen next) + labels · KL(teacher's list ‖ student)
    + states · alignment with decision states + reasonings · alignment with vectors of reasonings.

    Attributes:
        labels: weight in [0, 1] of the teacher's list.
        temperature: above 1 softens the list, below 1 sharpens it; see `losses.soft_labels`.
        top: how many of the teacher's items count, at most; all that it named if 0.
        within: what the student's softmax is over: the `catalog`, the teacher's `list`, or the `union` of that with
            the student's own top items.
        gammas: DLLM2Rec's weights of position, confidence and consistency in place of the teacher's probabilities;
            all 0 leaves these. See `losses.dllm2rec_labels`.
        states: weight of the alignment with the teacher's decision states.
        reasonings: weight of the alignment with the vectors of its reasonings.
        alignment: how vectors are compared; see `losses.alignment`.
    """

    labels: float = 0.5
    temperature: float = 1.0
    top: int = 0
    within: Literal["catalog", "list", "union"] = "catalog"
    gammas: tuple[float, float, float] = (0.0, 0.0, 0.0)
    states: float = 0.0
    reasonings: float = 0.0
    alignment: Alignment = "cosine"
