"""What distances are reweighed by, by hand: out of fold for training examples, and never with their own target."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evidence.candidates import NONE
from anyo_rl.evidence.fusion import FusedRanker, WrittenPart
from anyo_rl.evidence.retrievers import RetrieverSettings
from anyo_rl.evidence.reweighing import EvidenceWeights, RetrieverWeights, ReweighedRanker
from anyo_rl.ranking.embedding.ranker import EmbeddingRanker, choose_gamma

IDS = ("a", "b", "c")
VECTORS = np.array([[1.0], [2.0], [5.0]])  # from 0: D = 1, 2, 5 and D̂ = 0, 1/4, 1
CHOSEN = {"ann": "xyzwv", "ben": "xyzvw", "cat": "wvxyz", "dan": "vwzyx"}


def grounding(catalog_ids=IDS):
    return EmbeddingRanker(catalog_ids, VECTORS, lambda texts: torch.zeros(len(texts), 1))


def logged(folder, chosen):
    folder.mkdir()
    rows = [f"{user},{item},{time}" for user, items in chosen.items() for time, item in enumerate(items)]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    (folder / "items.csv").write_text("\n".join(["item_id,title", *(f"{i},thing {i}" for i in "xyzwv")]) + "\n")
    return load_task(DataArguments(dataset=str(folder / "log.csv"), split="leave_one_out"))


def test_a_training_example_is_weighed_by_users_of_other_folds(tmp_path):
    task = logged(tmp_path / "data", CHOSEN)
    weights = RetrieverWeights(task, RetrieverSettings(("popularity",)), seed=0, n_folds=2)
    order = list(weights.index)
    # Training sequences end two events before the end: xyz, xyz, wvx and vwz. All have: x 3, y 2, z 3, w 2, v 2.
    of_user = {"ann": "xyz", "ben": "xyz", "cat": "wvx", "dan": "vwz"}
    counts = {item: sum(item in items for items in of_user.values()) for item in order}
    assert counts == {"x": 3, "y": 2, "z": 3, "w": 2, "v": 2}
    train, test = task.split("train"), task.split("test")
    (held_out_N,) = weights.of([test["example_id"][0]])
    assert dict(zip(order, held_out_N.tolist(), strict=True)) == counts
    for example, user in train.select("example_id", "user_id").iter_rows():
        others = [
            items for name, items in of_user.items() if weights.crossed.folds[name] != weights.crossed.folds[user]
        ]
        (found_N,) = weights.of([example])
        assert dict(zip(order, found_N.tolist(), strict=True)) == {i: sum(i in o for o in others) for i in order}
    together = weights.of([*train["example_id"], test["example_id"][0]])
    np.testing.assert_array_equal(together[-1], held_out_N)
    np.testing.assert_array_equal(together[:-1], np.concatenate([weights.of([one]) for one in train["example_id"]]))


@pytest.mark.parametrize("name", ["popularity", "item_knn"])
def test_a_training_examples_target_and_later_events_do_not_show(tmp_path, name):
    found = []
    for number, anns in enumerate(["xyzwv", "xyvwz", "xywvz"]):  # her target after x and y is another each time
        task = logged(tmp_path / f"data-{number}", CHOSEN | {"ann": anns})
        weights = RetrieverWeights(task, RetrieverSettings((name,)), seed=0, n_folds=2)
        found.append(weights.of(["ann:2"]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def evidence_of(candidates, probabilities):
    with np.errstate(divide="ignore"):
        log_scores = np.log(np.array(probabilities, dtype=np.float32))
    return SimpleNamespace(
        maker=SimpleNamespace(index={item: place for place, item in enumerate(IDS)}),
        n_items=3,
        candidates=lambda ids: np.array(candidates, dtype=np.int32)[: len(ids)],
        log_scores=lambda ids: log_scores[: len(ids)],
    )


def test_evidence_weighs_candidates_by_their_probability():
    weights = EvidenceWeights(evidence_of([[2, 1], [0, NONE]], [[0.8, 0.2], [1.0, 0.0]]))
    np.testing.assert_allclose(weights.of(["u:1", "v:1"]), [[0, 0.2, 0.8], [1, 0, 0]], rtol=1e-6)


def test_the_reward_is_reweighed_by_what_belongs_to_each_example():
    weights = SimpleNamespace(of=lambda ids: np.array([{"u": [-1, -1, 3], "v": [5, 9, 7]}[one] for one in ids]))
    ranker = ReweighedRanker(grounding().with_gamma(3.0), weights)
    # u: W = 0, 0, 1: D̃ = 0, 1/4, 1/8. v: W = 0, 1, 1/2: D̃ = 0, 1/32, 8/27.
    ranking = ranker.rank(["-> x"] * 3, ["b", "b", "c"], example_ids_B=["u", "v", "u"])
    assert ranking.ranks_B.tolist() == [3, 2, 2]
    assert ranking.top_scores_B_K[1] == pytest.approx([0, -1 / 32, -8 / 27])
    without = ReweighedRanker(grounding(), weights).rank(["-> x"], ["b"])
    assert without.ranks_B.tolist() == [2]
    choice = choose_gamma(grounding(), ["-> x"], ["c"], gammas=[0, 3, 9], cf_scores_B_N=weights.of(["u"]))
    assert (choice.gamma, choice.value) == (3.0, pytest.approx(1 / np.log2(3)))


def test_what_is_written_is_fused_by_its_distance():
    evidence = evidence_of([[2, 1]], [[0.8, 0.2]])
    evidence.target_ranks = lambda ids: np.array([3] * len(ids))
    catalog = SimpleNamespace(
        item_ids=IDS, known=lambda ids: [], indices=lambda ids: np.array([IDS.index(one) for one in ids])
    )
    part = WrittenPart(catalog, grounding().with_gamma(50.0))
    (log_p,) = part.log_probs_of([["-> x"]], [[2, 1, 0]])
    assert log_p == pytest.approx([-10, -2.5, 0])
    (nothing,) = part.log_probs_of([["nothing"]], [[2, 1]])
    assert nothing.tolist() == [0, 0]
    # At α = .2 the nearer b has e^1.5 = 4.48 on c: .2 · 4.48 = .896 against .8.
    for alpha, rank, best in ((0.0, 2, 0.8), (0.1, 2, 0.8 / (0.8 + 0.2 * np.exp(0.75))), (0.2, 1, 0.896 / 1.696)):
        ranking = FusedRanker(part, evidence, alpha).rank(["-> x"], ["b"], example_ids_B=["u"])
        assert ranking.ranks_B.tolist() == [rank]
        assert np.exp(ranking.top_scores_B_K[0][0]) == pytest.approx(best, abs=1e-3)
        assert ranking.top_ids_B_K == [["b", "c"] if rank == 1 else ["c", "b"]]
    # Nothing written leaves the evidence's order.
    assert FusedRanker(part, evidence, 1.5).rank(["nothing"], ["b"], example_ids_B=["u"]).ranks_B.tolist() == [2]
