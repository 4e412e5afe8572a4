"""Losses of students: of the item chosen next, and of what a teacher says of it. Pure functions, a value for each row.

Rows R are positions of training sequences. Logits are a student's, and a log-probability is one under its softmax over
the whole catalog, whatever it is asked for.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Alignment = Literal["cosine", "mse", "infonce"]


def log_sum_by_sample(target_R: Tensor, others_R_n: Tensor, n_items: int) -> Tensor:
    """Log of the sum of exp(logit) over the catalog, estimated from the target and n drawn items: (R,).

    Each draw stands for (N − 1) / n of the others, which makes the sum right on average (Jean et al. 2015, arXiv
    1412.2007, with uniform draws).

    Args:
        target_R: logits of the targets.
        others_R_n: logits of uniform draws, −inf where one is the row's own target.
        n_items: size N of the catalog.
    """
    correction = np.log((n_items - 1) / others_R_n.shape[1])
    return torch.cat([target_R[:, None], others_R_n + correction], 1).logsumexp(1)


def binary_cross_entropy(target_R: Tensor, others_R_n: Tensor, n_items: int, calibration: float = 0.0) -> Tensor:
    """−(β log σ(target) + Σ log(1 − σ(others))) / (n + 1): (R,).

    β = a (t (1 − 1/a) + 1/a) with a = n / (N − 1), which undoes the overconfidence that drawing few negatives brings:
    gBCE of gSASRec (Petrov & Macdonald 2023, arXiv 2308.07192). t = 0 gives β = 1, SASRec's own loss; t = 1 gives
    β = a, whose probabilities are calibrated.

    Args:
        target_R: logits of the targets.
        others_R_n: logits of uniform draws, −inf where one is the row's own target.
        n_items: size N of the catalog.
        calibration: t in [0, 1].
    """
    n = others_R_n.shape[1]
    share = n / (n_items - 1)
    beta = share * (calibration * (1 - 1 / share) + 1 / share)
    return (beta * F.softplus(-target_R) + F.softplus(others_R_n).sum(1)) / (n + 1)


def inverse_propensity(propensities_N: NDArray[np.float64], power: float, most: float = 10.0) -> NDArray[np.float32]:
    """Weights of targets, min(propensity^−power, most), scaled to a mean of 1 over the items: (N,).

    Inverse propensity scoring (Schnabel et al. 2016, arXiv 1602.05352), whose weights are not clipped: rare targets
    count for more, as if all items had been seen alike.

    Args:
        propensities_N: in (0, 1].
        power: 0 for no correction, 1 for the whole of it.
        most: what weights are clipped to, before they are scaled.
    """
    weights_N = np.minimum(propensities_N**-power, most)
    return (weights_N / weights_N.mean()).astype(np.float32)


def soft_labels(top_log_probs_R_K: Tensor, temperature: float = 1.0) -> Tensor:
    """A teacher's probabilities within its list, p^(1/T) made to sum to 1: (R, K); 0 where the list has no item.

    Hinton et al. 2015 (arXiv 1503.02531) soften teacher and student alike. Here the teacher alone is softened, or
    sharpened by T < 1: what it says may be scores of another scale, and the student is asked without a temperature.

    Args:
        top_log_probs_R_K: −inf where there is no item.
        temperature: T, above 0.
    """
    return torch.nan_to_num(F.softmax(top_log_probs_R_K / temperature, dim=1), nan=0.0)


def dllm2rec_labels(labels_R_K: Tensor, known_R_K: Tensor, gammas: tuple[float, float, float]) -> Tensor:
    """The weights that DLLM2Rec gives to a teacher's list, best item first, as labels that sum to 1: (R, K).

    γ_position · e^(−place) + γ_confidence · confidence + γ_consistency · (whether the student's own top list has the
    item), the first two made to sum to 1 over the list before (Cui et al. 2024, arXiv 2405.00338, and the authors'
    code, whose γ are .3, .5, .1). Departures: confidence is the teacher's probability, in place of e^(−distance) of a
    title that it wrote; and the weights are labels of one softmax, in place of factors of binary losses, in the
    negative part of which the authors' code has a slip, log σ(1 − s) for log(1 − σ(s)).

    Args:
        labels_R_K: the teacher's probabilities (`soft_labels`), 0 where there is no item.
        known_R_K: whether the student's own top list has the item.
        gammas: weights of position, confidence and consistency, one of the first two above 0.
    """
    real_R_K = labels_R_K > 0
    places_K = torch.arange(1, labels_R_K.shape[1] + 1, device=labels_R_K.device)
    position_R_K = _to_one(torch.exp(-places_K.float()) * real_R_K)
    parts = (position_R_K, labels_R_K, (known_R_K & real_R_K).float())
    return _to_one(sum(gamma * part for gamma, part in zip(gammas, parts, strict=True)))  # type: ignore[arg-type]


def listwise_kl(log_probs_R_K: Tensor, labels_R_K: Tensor) -> Tensor:
    """KL(labels ‖ student): Σ q (log q − log p), (R,). 0 where the student says what the teacher says.

    Over the whole catalog the student also learns that what the list lacks is worth nothing. Within a list (the
    student's log-probabilities made to sum to 1 there, see `within`) it learns the order of the list alone.

    Args:
        log_probs_R_K: the student's, of the items of the list; −inf where there is no item.
        labels_R_K: sums to 1 in each row, 0 where there is no item.
    """
    named_R_K = labels_R_K > 0
    student_R_K = log_probs_R_K.masked_fill(~named_R_K, 0.0)
    return (torch.xlogy(labels_R_K, labels_R_K) - labels_R_K * student_R_K).sum(1)


def within(log_probs_R_W: Tensor, in_list_R_W: Tensor) -> Tensor:
    """Log-probabilities made to sum to 1 over the items of a list, −inf elsewhere: (R, W)."""
    return F.log_softmax(log_probs_R_W.masked_fill(~in_list_R_W, -torch.inf), dim=1)


def union_with_own(top_items_R_K: Tensor, labels_R_K: Tensor, own_items_R_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A teacher's list and behind it the student's own top items, with label 0: what that lacks and the student wants.

    Cross-entropy within a list bounds NDCG only where the list holds all that the student puts above its items
    (RCE-KD, Zhu & Zhang 2025, arXiv 2509.20989). Departures: the paper takes the items that both want apart, samples
    for the others, and weighs the two losses adaptively; here one loss is over the union, closed as far down as the
    student's own list goes.

    Args:
        top_items_R_K: the teacher's items, −1 for none.
        labels_R_K: of these.
        own_items_R_K: the student's own top items.

    Returns:
        Items (R, W), with 0 where there is none; labels (R, W); and whether there is an item (R, W): one that both
        lists have counts once.
    """
    again_R_K = (own_items_R_K[:, :, None] == top_items_R_K[:, None, :]).any(2)
    there_R_W = torch.cat([top_items_R_K >= 0, ~again_R_K], 1)
    items_R_W = torch.cat([top_items_R_K, own_items_R_K], 1).where(there_R_W, 0)
    return items_R_W, torch.cat([labels_R_K, torch.zeros_like(own_items_R_K, dtype=labels_R_K.dtype)], 1), there_R_W


def alignment(ours_R_D: Tensor, theirs_R_D: Tensor, kind: Alignment = "cosine", temperature: float = 0.1) -> Tensor:
    """How far a student's states, after a learned projection, are from a teacher's vectors: (R,).

    `cosine`: 1 − cosine. `mse`: the mean square of differences (FitNets, Romero et al. 2015, arXiv 1412.6550).
    `infonce`: −log of a softmax over the cosines with the vectors of all rows, divided by the temperature, at the
    row's own (CRD, Tian et al. 2020, arXiv 1910.10699, with the rows of a step in place of a memory). A vector that
    another row has too, such as the same reasoning, is no negative.

    Args:
        ours_R_D: projected states of the student.
        theirs_R_D: decision states of a teacher, or vectors of what it wrote.
        kind: of the distance.
        temperature: of `infonce`, above 0.
    """
    if kind == "mse":
        return (ours_R_D - theirs_R_D).square().mean(1)
    ours_R_D, theirs_R_D = F.normalize(ours_R_D, dim=1), F.normalize(theirs_R_D, dim=1)
    if kind == "cosine":
        return 1 - (ours_R_D * theirs_R_D).sum(1)
    same_R_R = torch.cdist(theirs_R_D, theirs_R_D) < 1e-3
    same_R_R.fill_diagonal_(False)
    logits_R_R = (ours_R_D @ theirs_R_D.T / temperature).masked_fill(same_R_R, -torch.inf)
    return -F.log_softmax(logits_R_R, dim=1).diagonal()


def _to_one(weights_R_K: Tensor) -> Tensor:
    return weights_R_K / weights_R_K.sum(1, keepdim=True).clamp(min=1e-12)


def temperatures(n_states: int, annealing: float) -> list[float]:
    """Temperature of each state's prediction: annealing^(K − k), 1 for the last.

    Args:
        n_states: the answer at once and K thoughts.
        annealing: 1 or more.

    >>> temperatures(3, 2.0)
    [4.0, 2.0, 1.0]
    """
    return [annealing ** (n_states - 1 - k) for k in range(n_states)]
