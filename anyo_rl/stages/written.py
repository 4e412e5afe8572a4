"""Teachers that write items, grounded as BIGRec does: as GRPO's reward, and as rows of a run's table.

γ is chosen on validation: for training once, when the stage starts; for each row of the table anew, and opened on test
once. At 0 distance alone decides.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.schema import VALIDATION
from anyo_rl.encoders.hidden_states import minilm_encoder, teacher_encoder
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.evaluation.stages import FUSED_ROW, Writing, written_row
from anyo_rl.evidence.candidates import places
from anyo_rl.evidence.fusion import FusedRanker, FusedRanking, WrittenPart, choose_alpha
from anyo_rl.evidence.opened import Evidence
from anyo_rl.evidence.reweighing import EvidenceWeights, RetrieverWeights, ReweighedRanker, Weights
from anyo_rl.ranking.embedding.ranker import EmbeddingRanker, GammaChoice, choose_gamma
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.protocol import Ranking
from anyo_rl.ranking.written import grounding
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import read_json, readable
from anyo_rl.run.folder import CONFIG, read_arguments
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.kept import KeptSampler
from anyo_rl.sampling.protocol import Sampler, Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import Answers, How, reasoned
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.candidates import retriever_weights
from anyo_rl.stages.fusion import keep_choice, made_with_evidence, open_evidence
from anyo_rl.stages.job import Job
from anyo_rl.students.protocol import rows_at_once

logger = logging.getLogger(__name__)

EVIDENCE = "evidence"
EMBEDDING = "embedding"
FOLDER = "written"  # of a run: vectors of titles, γ of rows, settings of the retriever


def trained_ranker(job: Job) -> str:
    """What rewarded the teachers of a run, as its folder recorded it; `likelihood` where nothing did."""
    recorded = read_arguments(job.folder) if (job.folder / CONFIG).is_file() else {}
    kind: str = recorded.get("GrpoArguments", {}).get("ranker", LikelihoodRanker.kind)
    return kind


def writing_of(teacher_args: TeacherArguments, ranker: str) -> Writing:
    """How teachers write items when they are evaluated: as the settings say, else as they learned to.

    Args:
        teacher_args: the settings.
        ranker: what rewarded them.
    """
    learned = ranker != LikelihoodRanker.kind or teacher_args.sft_item_loss == "tokens"
    return teacher_args.written or ("catalog" if learned else "none")


def check_written(teacher_args: TeacherArguments, ranker: str = LikelihoodRanker.kind) -> None:
    """Refuses settings of written items that do not go together, or would be passed over.

    Args:
        teacher_args: the settings.
        ranker: of the reward.

    Raises:
        UsageError: there is one.
    """
    by, writing = teacher_args.reweigh_by, writing_of(teacher_args, ranker)
    if by is not None and writing == "none" and ranker != EMBEDDING:
        raise UsageError(
            f"reweigh_by is {by}, and no item is written: set written to catalog or free, or train with ranker "
            f"{EMBEDDING}"
        )
    if by == EVIDENCE and not teacher_args.evidence:
        raise UsageError("reweigh_by is evidence: name the folder of recipes/rank_evidence.py (evidence)")
    if writing == "free" and teacher_args.item_tokens != "title":
        raise UsageError(
            f"written is free and item_tokens is {teacher_args.item_tokens}: free text is grounded by its title; set "
            "written to catalog"
        )


def open_weights(job: Job) -> Weights | None:
    """What a run reweighs distances by; `None` where distance alone decides.

    The settings of a retriever are chosen on validation, or taken from the run's `baselines_from`, once; all processes
    call this together.

    Raises:
        UsageError: it is evidence, and that is not finished or of other data.
    """
    by = job.teacher_args.reweigh_by
    if by is None:
        return None
    if by == EVIDENCE:
        evidence = open_evidence(job)
        assert evidence is not None, "it was checked"
        return EvidenceWeights(evidence)
    return retriever_weights(job.task, by, job.seed, job.folder / FOLDER, job.teacher_args.baselines_from)


def made_with_weights(weights: Weights) -> Mapping[str, object]:
    """What answers depend on besides the teacher, ready for JSON."""
    if isinstance(weights, EvidenceWeights):
        return made_with_evidence(weights.evidence)
    assert isinstance(weights, RetrieverWeights), "there are two"
    return weights.settings.as_json()


def by_distance(job: Job, stage: str, teacher: Teacher, writing: Writing) -> EmbeddingRanker:
    """The ranker of a stage's row, between the embeddings of its own teacher or those of all-MiniLM."""
    if job.teacher_args.item_encoder == "minilm":
        encoder = minilm_encoder(PartialState().device)
    else:
        encoder = teacher_encoder(teacher.model, teacher.tokens.tokenizer)
    return grounding(teacher.catalog, encoder, job.folder / FOLDER / stage, free=writing == "free")


@dataclass(frozen=True)
class Writer:
    """A teacher that writes an item for each user, once; all processes use it together.

    Attributes:
        job: of the run.
        teacher: the teacher.
        how: greedily after a reasoning, or at once.
        writing: held to the catalog, or any text.
        open_ranker: opens the ranker by distance alone.
        rows: of the test users, as the teacher reads them.
        paths: where the reasonings lie that the teacher by itself has written for the test users, if anywhere.
    """

    job: Job
    teacher: Teacher
    how: How
    writing: Writing
    open_ranker: Callable[[], EmbeddingRanker]
    rows: Sequence[Row] = ()
    paths: Path | None = None

    @cached_property
    def ranker(self) -> EmbeddingRanker:
        """By distance alone."""
        return self.open_ranker()

    @cached_property
    def validation(self) -> tuple[list[Row], list[str]]:
        """The run's validation users, and what is written for them."""
        rows = list(self.job.rows(VALIDATION, self.teacher, self.job.task.args.max_validation))
        return rows, self.write(rows)

    @cached_property
    def test(self) -> list[str]:
        """What is written for the test users."""
        return self.write(self.rows)

    def write(self, rows: Sequence[Row]) -> list[str]:
        """The item that is written for each user, as a completion without its reasoning; users are shared out."""
        model, tokens, tree = self.teacher.model, self.teacher.tokens, self.teacher.catalog.tree
        at_once = self.job.teacher_args.sampling_tokens
        if self.writing == "free":
            sampler, most = TransformersSampler(model, tokens, at_once), int(tree.depth.max())
        else:
            sampler, most = TransformersSampler(model, tokens, at_once, tree=tree), 1  # and the item on top
        state = PartialState()
        own = rows[state.process_index :: state.num_processes]
        reasons: Sampler = self.job.sampler(model, tokens)
        if self.paths is not None:
            reasons = KeptSampler.read(self.paths, reasons)
        texts = []
        for *_, marked in reasoned(own, reasons, tokens, self.how):
            written = sampler.sample([context for (context,) in marked], Sampling(max_new_tokens=most).greedy())
            texts += [tokens.decode([tokens.marker_id, *sample.token_ids]) for (sample,) in written]
        parts: list[list[str]] = gather_object([texts])
        return [parts[place % len(parts)][place // len(parts)] for place in range(len(rows))]

    def gamma(self, weights: Weights) -> GammaChoice:
        """The γ that is best on validation."""
        rows, texts = self.validation
        return choose_gamma(
            self.ranker,
            texts,
            [row.target_id for row in rows],
            excluded_B=[row.excluded for row in rows],
            cf_scores_B_N=weights.of([row.example_id for row in rows]),
        )

    def answers(self, weights: Weights | None, file: Path) -> Answers:
        """Ranks of the test users' targets by distance from what was written.

        Args:
            weights: what distances are reweighed by.
            file: where the choice of γ is kept.
        """
        if weights is None:
            return self._answers(self.ranker)
        choice = self.gamma(weights)
        keep_choice(file, choice)
        return self._answers(ReweighedRanker(self.ranker.with_gamma(choice.gamma), weights))

    def fused_answers(self, evidence: Evidence, file: Path) -> Answers:
        """The same by distance and evidence together; see `WrittenPart`.

        Args:
            evidence: of the same catalog.
            file: where the choice of α is kept.
        """
        part, (rows, texts) = WrittenPart(self.teacher.catalog, self.ranker), self.validation
        ids, targets = [row.example_id for row in rows], [row.target_id for row in rows]
        candidates_B_K = np.array(evidence.candidates(ids))
        log_p_B_1_K = FusedRanker(part, evidence, 0.0).log_probs([[text] for text in texts], candidates_B_K)
        place_B = places(candidates_B_K, self.teacher.catalog.indices(targets))
        choice = choose_alpha(log_p_B_1_K, evidence.log_scores(ids), place_B)
        keep_choice(file, choice)
        return self._answers(FusedRanker(part, evidence, choice.alpha))

    def _answers(self, ranker: EmbeddingRanker | ReweighedRanker | FusedRanker) -> Answers:
        """Some users at a time, so that weights stay within bounds."""
        rank: Callable[..., Ranking] = ranker.rank
        found: list[Ranking] = []
        at_once = rows_at_once(len(self.teacher.catalog))
        for start in range(0, len(self.rows), at_once):
            rows, texts = self.rows[start : start + at_once], self.test[start : start + at_once]
            told = {"excluded_B": [row.excluded for row in rows], "top_k": self.how.top_k}
            if not isinstance(ranker, EmbeddingRanker):
                told["example_ids_B"] = [row.example_id for row in rows]
            found.append(rank(texts, [row.target_id for row in rows], **told))
        same = [one.as_evidence_B_2 for one in found if isinstance(one, FusedRanking)]
        evidence = [one.evidence_ranks_B for one in found if isinstance(one, FusedRanking)]
        return Answers(
            np.concatenate([one.ranks_B for one in found]),
            [ids for one in found for ids in one.top_ids_B_K],
            [],  # the reasonings are those of the teacher's own row
            as_evidence_U_2=np.concatenate(same) if same else None,
            evidence_ranks_U=np.concatenate(evidence) if evidence else None,
        )


def keep_written(
    evaluation: Evaluation,
    stage: str,
    writer: Writer,
    made_with: Mapping[str, object],
    *,
    weights: Weights | None,
    evidence: Evidence | None,
) -> None:
    """Keeps the rows of what a teacher writes: by distance alone, reweighed, and together with evidence.

    All processes call this together.

    Args:
        evaluation: of the run.
        stage: whose teacher it is.
        writer: of the test users.
        made_with: what the teacher's own answers depend on.
        weights: what distances are reweighed by, if anything.
        evidence: what they are fused with, if anything.
    """
    args, mode, folder = writer.job.teacher_args, writer.how.mode, writer.job.folder
    made_with = {**made_with, "writing": writer.writing, "item_encoder": args.item_encoder}
    name = written_row(stage, writer.writing)
    evaluation.keep(name, mode, partial(writer.answers, None, folder), made_with, together=True)
    if weights is not None:
        by = written_row(stage, writer.writing, args.reweigh_by)
        ask = partial(writer.answers, weights, folder / FOLDER / f"{by}.{mode}.json")
        evaluation.keep(by, mode, ask, {**made_with, "reweighed": made_with_weights(weights)}, together=True)
    if evidence is not None:
        ask = partial(writer.fused_answers, evidence, folder / "fusion" / f"{name}.{mode}.json")
        evaluation.keep(f"{name}{FUSED_ROW}", mode, ask, {**made_with, **made_with_evidence(evidence)}, together=True)


def training_ranker(
    job: Job, stage: str, start: Path | str, ranker: EmbeddingRanker
) -> EmbeddingRanker | ReweighedRanker:
    """The reward's ranker of a stage, reweighed as the run's settings say; γ is chosen once. All processes call this.

    Args:
        job: of the run.
        stage: its name; γ is kept in its folder.
        start: the teacher that it starts from, which γ is chosen with.
        ranker: by distance alone.
    """
    weights = open_weights(job)
    if weights is None:
        return ranker
    file, state = job.folder / stage / "gamma.json", PartialState()
    known = file.exists()
    state.wait_for_everyone()  # so that all have looked before one writes
    if not known:
        with whole_weights(), job.opened(start) as teacher:
            writer = Writer(job, teacher, job.how("greedy", seed=0), "catalog", lambda: ranker)
            keep_choice(file, writer.gamma(weights))
    state.wait_for_everyone()
    with readable(file):
        gamma = float(read_json(file)["gamma"])
    logger.info("%s: distances are reweighed by %s, gamma %g (%s)", stage, job.teacher_args.reweigh_by, gamma, file)
    return ReweighedRanker(ranker.with_gamma(gamma), weights)
