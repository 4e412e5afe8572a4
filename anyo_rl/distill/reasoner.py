"""A run's teacher as the teacher of students: answers as evaluation has them, with states and reasonings besides."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.completion import parse
from anyo_rl.data.task import Task
from anyo_rl.distill.cache import Labels
from anyo_rl.encoders.hidden_states import teacher_encoder
from anyo_rl.evidence.candidates import NONE
from anyo_rl.evidence.fusion import FusedRanker
from anyo_rl.evidence.softening import Softening, choose_softening
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.protocol import Ranking
from anyo_rl.reasoning.kinds.asking import Asking
from anyo_rl.reasoning.rows import Rows
from anyo_rl.sampling.protocol import Sampler
from anyo_rl.search.answers import Answers, How, reasoned
from anyo_rl.search.reranked import Reranker

Encoder = Callable[[list[str]], torch.Tensor]


@dataclass(frozen=True)
class Reasoner:
    """An open teacher that answers training histories.

    Attributes:
        task: the data.
        teacher: the teacher.
        ranker: the engine on its weights, by itself or fused with evidence, which is out of fold for these histories.
        sampler: on the same weights.
        how: with or without reasoning, and how many items are named.
        states: whether its decision states are kept.
        encoder: makes vectors of its reasonings' texts; `None` for none.
        asking: the kind of reasoning; steps, where there is none.
        reranker: the same teacher, where it is asked about candidates; orders have no probabilities.
        softening: how the places in its orders become some.
    """

    task: Task
    teacher: Teacher
    ranker: LikelihoodRanker | FusedRanker
    sampler: Sampler
    how: How
    states: bool = True
    encoder: Encoder | None = None
    asking: Asking | None = None
    reranker: Reranker | None = None
    softening: Softening = field(default_factory=Softening)

    @property
    def dim(self) -> int:
        """Numbers of a decision state."""
        width: int = self.teacher.model.config.get_text_config().hidden_size
        return width

    @property
    def reasons(self) -> bool:
        """Whether there are reasonings to keep."""
        return self.how.mode != "plain"

    def label(self, histories: pl.DataFrame) -> Labels:
        """The answers to training histories, rows of `anyo_rl.data.sequences.training_positions`."""
        if self.reranker is not None:
            return self._reranked(self.reranker, histories["place"].to_numpy())
        tokens, catalog, k = self.teacher.tokens, self.teacher.catalog, self.how.top_k
        rows = Rows(self.task, histories["place"].to_numpy(), catalog, tokens, asking=self.asking)
        rankings, texts, marked = [], [], []
        for batch, _, samples, contexts in reasoned(rows, self.sampler, tokens, self.how):
            rankings.append(
                self.ranker.rank_mixture(
                    contexts,
                    [row.target_id for row in batch],
                    top_k=k,
                    excluded_B=[row.excluded for row in batch],
                    example_ids_B=[row.example_id for row in batch],
                )
            )
            marked += contexts
            for of_row in samples:
                texts.append(["\n".join(parse(tokens.decode(sample.token_ids)).steps) for sample in of_row])
        lists = [_lists(ranking, catalog.index, k) for ranking in rankings]
        return Labels(
            items_R_K=np.concatenate([items_B_K for items_B_K, _ in lists]),
            log_probs_R_K=np.concatenate([log_probs_B_K for _, log_probs_B_K in lists]),
            ranks_R=np.concatenate([ranking.ranks_B for ranking in rankings]),
            states_R_D=self._states(marked) if self.states else None,
            reasonings=[of_row[0] for of_row in texts] if self.reasons else None,
            vectors_R_D=self._vectors(texts) if self.reasons and self.encoder is not None else None,
        )

    def choose_softening(self, places: NDArray[np.int64]) -> Softening:
        """How places in a teacher's orders become probabilities, by validation examples of these row numbers."""
        assert self.reranker is not None, "it is asked about candidates"
        answers = self.reranker.ranked(places, self.reranker.rerank(places))
        items_R_K = self._items(answers)
        targets = self.task.examples["target_id"].gather(places).to_list()
        return choose_softening(_by_place(items_R_K), items_R_K, self.teacher.catalog.indices(targets))

    def _reranked(self, reranker: Reranker, places: NDArray[np.int64]) -> Labels:
        """The same of a teacher that is asked about candidates: these, and the rest behind them as it came in."""
        found = reranker.rerank(places)
        answers = reranker.ranked(places, found)
        items_R_K = self._items(answers)
        return Labels(
            items_R_K=items_R_K,
            log_probs_R_K=self.softening.log_probs(_by_place(items_R_K)),
            ranks_R=answers.ranks_U,
            states_R_D=self._states(found.contexts_R_G) if self.states else None,
            reasonings=[next(iter(texts), "") for texts in found.texts_R_G] if self.reasons else None,
            vectors_R_D=self._vectors(found.texts_R_G) if self.reasons and self.encoder is not None else None,
        )

    def _items(self, answers: Answers) -> NDArray[np.int32]:
        items_R_K = np.full((len(answers.ranks_U), self.how.top_k), NONE, dtype=np.int32)
        for row, top in enumerate(answers.top_ids_U_K):
            items_R_K[row, : len(top)] = self.teacher.catalog.indices(top)
        return items_R_K

    def _states(self, contexts_R_G: list[list[list[int]]]) -> NDArray[np.float16]:
        """The last hidden states at the marker, the mean over paths."""
        encoder = teacher_encoder(self.teacher.model, self.teacher.tokens.tokenizer)
        return _mean(encoder.of_ids([context for of_row in contexts_R_G for context in of_row]), len(contexts_R_G))

    def _vectors(self, texts_R_G: list[list[str]]) -> NDArray[np.float16]:
        """Vectors of the texts, the mean over paths; 0 for those that say nothing."""
        assert self.encoder is not None, "asked for with one"
        texts = [text for of_row in texts_R_G for text in of_row]
        said = list(dict.fromkeys(filter(None, texts))) or [" "]
        vectors = self.encoder(said)
        vectors = torch.cat([vectors, torch.zeros_like(vectors[:1])])
        place = {text: at for at, text in enumerate(said)}
        at = torch.tensor([place.get(text, len(said)) for text in texts], device=vectors.device)
        return _mean(vectors[at], len(texts_R_G))


def _by_place(items_R_K: NDArray[np.int32]) -> NDArray[np.float64]:
    """Scores of ordered items by their places alone: the negative log of the place, -inf where there is none."""
    scores_K = -np.log(1.0 + np.arange(items_R_K.shape[1]))
    return np.where(items_R_K == NONE, -np.inf, scores_K)


def _mean(vectors: torch.Tensor, n_rows: int) -> NDArray[np.float16]:
    """The mean over the paths of each row, which lie one after another: (R, D)."""
    of_rows: torch.Tensor = vectors.float().view(n_rows, -1, vectors.shape[-1]).mean(1)
    with np.errstate(over="ignore"):  # the cache refuses what float16 does not hold
        return of_rows.cpu().numpy().astype(np.float16)


def _lists(ranking: Ranking, index: dict[str, int], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The top items of a ranking by their indices, and their log-probabilities, (B, K) each."""
    items_B_K = np.full((len(ranking.top_ids_B_K), k), NONE, dtype=np.int32)
    log_probs_B_K = np.full(items_B_K.shape, -np.inf, dtype=np.float32)
    for row, (ids, scores) in enumerate(zip(ranking.top_ids_B_K, ranking.top_scores_B_K, strict=True)):
        items_B_K[row, : len(ids)] = [index[item] for item in ids]
        log_probs_B_K[row, : len(ids)] = scores
    return items_B_K, log_probs_B_K
