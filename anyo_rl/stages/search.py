"""Searches at inference as rows of a run's table, each with what it costs.

    search/<stage>.json                 what was tried on validation, and what was chosen
    search/<stage>.<search>-<n>.html    a picture of one user's tree
    answers/, paths/                    as those of other rows

Settings that are left open are chosen on validation; each row opens the test users once. Beside each search stands the
smallest plain mixture that writes as many tokens.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from anyo_rl.catalog.opening import Teacher
from anyo_rl.evaluation.evaluator import Evaluation, Made, weights_of
from anyo_rl.evaluation.report.tree import Asked, tree_page
from anyo_rl.evaluation.searches import MIXTURE, search_mode, split_mode
from anyo_rl.evaluation.stages import FUSED_ROW
from anyo_rl.evaluation.summary import TOKENS
from anyo_rl.evidence.fusion import Engine, FusedRanker
from anyo_rl.evidence.opened import Evidence
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import read_table, write_table, write_whole
from anyo_rl.run.launch import whole_weights
from anyo_rl.sampling.paths import paths_table
from anyo_rl.search.answers import Answers, How, answer_blindly
from anyo_rl.stages.evaluate import evaluation_of
from anyo_rl.stages.fusion import alpha_of, keep_choice, made_with_evidence, open_evidence
from anyo_rl.stages.job import Job
from anyo_rl.stages.search_arguments import SearchArguments
from anyo_rl.values.prm import Prm

logger = logging.getLogger(__name__)
FOLDER = "search"
DEPTH = 10  # of NDCG, by which settings are chosen


@dataclass(frozen=True)
class Searcher:
    """A teacher that is searched with.

    Attributes:
        job: of the run.
        args: which searches.
        row: the name of its rows: the stage, or that with evidence.
        teacher: the teacher, opened.
        ranker: the engine on its weights, by itself or with evidence.
        prm: that values its reasonings, where one is named.
    """

    job: Job
    args: SearchArguments
    row: str
    teacher: Teacher
    ranker: Engine
    prm: Prm | None = None

    def answers(self, rows: Sequence[Row], how: How) -> Answers:
        """What users are answered, and where that puts their targets; all processes call this together."""
        sampler = self.job.sampler(self.teacher.model, self.teacher.tokens, with_log_probs=True)
        return answer_blindly(rows, self.ranker, sampler, self.teacher.tokens, how)

    def hows(self, search: str, n: int) -> list[How]:
        """What is tried of a search."""
        return list(self.args.hows(search, n, self.job.how("mixture", seed=self.job.seed).sampling, self.prm))

    def choose(self, search: str, n: int, tried: list[dict[str, object]]) -> How:
        """The settings of a search that are best on validation users; the only ones without asking.

        Args:
            search: its name.
            n: reasonings.
            tried: gets what was tried, ready for JSON.
        """
        hows = self.hows(search, n)
        if len(hows) == 1:
            return hows[0]
        rows = list(self.job.rows("validation", self.teacher, self.job.task.args.max_validation))
        values = []
        for how in hows:
            found = self.answers(rows, dataclasses.replace(how, keep_paths=False))
            values.append(float(ndcg(found.ranks_U, DEPTH).mean()))
            mode = search_mode(search, n)
            tried.append(
                {"search": mode, "score": how.settings.score, "final": how.settings.final, "ndcg": values[-1]}
            )
        return hows[values.index(max(values))]


def search_run(job: Job, args: SearchArguments, stage: str, path: Path) -> None:
    """Answers the test users of a run by searches, and keeps answers, costs and pictures; all processes together.

    Args:
        job: of the run.
        args: which searches.
        stage: whose teacher it is.
        path: the teacher's folder.
    """
    evidence = open_evidence(job)
    prm = Prm.load(args.prm, device=PartialState().device) if args.prm else None
    with job.opened(path) as teacher, whole_weights():
        evaluation = evaluation_of(job, teacher.catalog.item_ids)
        rows = job.rows_of(evaluation.test, teacher)
        engine = LikelihoodRanker(teacher.catalog, teacher.model)
        searchers = [Searcher(job, args, stage, teacher, engine, prm)] if "evidence" not in args.score else []
        if evidence is not None:
            fused = _with_evidence(job, stage, teacher, evidence)
            searchers.append(Searcher(job, args, f"{stage}{FUSED_ROW}", teacher, fused, prm))
        elif "evidence" in args.score:
            searchers.append(Searcher(job, args, stage, teacher, engine, prm))  # which says what it lacks
        for searcher in searchers:
            made = _made_with(searcher, path, evidence if searcher.row != stage else None)
            _search_rows(searcher, evaluation, rows, made)


def _with_evidence(job: Job, stage: str, teacher: Teacher, evidence: Evidence) -> FusedRanker:
    """The ranker by teacher and evidence, at the weight that is best for the plain mixture on validation."""
    choice = alpha_of(job, teacher, evidence, job.how("mixture", seed=job.seed))
    keep_choice(job.folder / "fusion" / f"{stage}.search.json", choice)
    return FusedRanker(LikelihoodRanker(teacher.catalog, teacher.model), evidence, choice.alpha)


def _made_with(searcher: Searcher, path: Path, evidence: Evidence | None) -> Made:
    """What all rows of a teacher depend on, ready for JSON."""
    made: Made = {
        "weights": weights_of(path),
        "marker": searcher.teacher.tokens.marker_id,
        "chat_template_kwargs": searcher.job.chat_template_kwargs,
        "prm": None if searcher.args.prm is None else weights_of(searcher.args.prm),
    }
    if searcher.teacher.ids is not None:
        made["item_tokens"] = searcher.teacher.catalog.tree.fingerprint
    return made if evidence is None else made | made_with_evidence(evidence)


def _search_rows(searcher: Searcher, evaluation: Evaluation, rows: Sequence[Row], made: Made) -> None:
    """The rows that were asked for, and the mixtures that write as many tokens."""
    tried: list[dict[str, object]] = []
    chosen: dict[str, How] = {}
    for search, n in _asked(searcher.args):
        chosen[search_mode(search, n)] = searcher.choose(search, max(1, n), tried)
    for mode, how in chosen.items():
        _keep_row(searcher, evaluation, rows, (mode, how), made)
    for n in _matching(searcher, evaluation, list(chosen)):
        (how,) = searcher.hows(MIXTURE, n)
        chosen[search_mode(MIXTURE, n)] = how
        _keep_row(searcher, evaluation, rows, (search_mode(MIXTURE, n), how), made)
    if PartialState().is_main_process:
        settings = {mode: _told(how) for mode, how in chosen.items()}
        file = searcher.job.folder / FOLDER / f"{searcher.row}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({"tried_on_validation": tried, "chosen": settings}, indent=2))


def _asked(args: SearchArguments) -> Iterator[tuple[str, int]]:
    """Searches and their n: 0 where nothing is reasoned, 1 for a greedy reasoning."""
    for search in dict.fromkeys(args.search):
        if search in ("plain", "greedy"):
            yield search, int(search == "greedy")
        else:
            yield from ((search, n) for n in dict.fromkeys(args.n))


def _matching(searcher: Searcher, evaluation: Evaluation, modes: Sequence[str]) -> list[int]:
    """n of the plain mixtures that write as many tokens as each search, on average over the test users.

    How much is written says nothing of targets. None where no mixture was asked for.
    """
    wanted: list[int] = []
    if PartialState().is_main_process:
        tokens = {
            split_mode(mode): float(read_table(evaluation.file(searcher.row, mode), [TOKENS])[TOKENS].mean())  # type: ignore[arg-type]
            for mode in modes
        }
        each = [of_row / n for (search, n), of_row in tokens.items() if search == MIXTURE and of_row]
        if each:
            for (search, n), of_row in tokens.items():
                if search not in ("plain", "greedy", MIXTURE) and n:
                    # A hundredth more, so that the few tokens by which paths differ in length decide nothing.
                    wanted.append(max(1, ceil(1.01 * of_row / max(each))))
    (wanted,) = broadcast_object_list([wanted])
    return [n for n in sorted(set(wanted)) if search_mode(MIXTURE, n) not in modes]


def _told(how: How) -> dict[str, object]:
    """The settings of a row, ready for JSON."""
    settings = {
        field.name: getattr(how.settings, field.name)
        for field in dataclasses.fields(how.settings)
        if field.name != "prm"
    }
    return {**settings, **dataclasses.asdict(how.sampling), "search": how.mode}


def _keep_row(
    searcher: Searcher, evaluation: Evaluation, rows: Sequence[Row], mode_and_how: tuple[str, How], made: Made
) -> None:
    mode, how = mode_and_how

    def ask() -> Answers:
        found = searcher.answers(rows, how)
        if PartialState().is_main_process and found.found_U:
            write_picture(searcher, rows[0], found, mode)
        return found

    alpha = {"alpha": searcher.ranker.alpha} if isinstance(searcher.ranker, FusedRanker) else {}
    evaluation.keep(searcher.row, mode, ask, made | alpha | {"how": _told(how)}, together=True)


def write_picture(searcher: Searcher, row: Row, answers: Answers, mode: str) -> None:
    """Keeps a picture of the first user's tree."""
    catalog = searcher.teacher.catalog
    titles = dict(zip(catalog.item_ids, catalog.titles, strict=True))
    assert answers.found_U is not None, "searches keep what they found"
    asked = Asked(
        f"{searcher.row} · {mode} · {row.example_id}",
        [titles.get(item, item) for item in row.history],
        f"{titles[row.target_id]} (rank {int(answers.ranks_U[0])})",
    )
    file = searcher.job.folder / FOLDER / f"{searcher.row}.{mode}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, tree_page(answers.found_U[0], asked, titles))


def keep_train_paths(job: Job, args: SearchArguments, stage: str, path: Path, n_examples: int) -> list[Path]:
    """Paths that searches find for training examples, as tables that STaR, DPO and PRMs read; ranked by the engine.

    Args:
        job: of the run.
        args: which searches; each with its first settings.
        stage: whose teacher it is.
        path: the teacher's folder.
        n_examples: most examples, drawn by the data seed.

    Returns:
        The files, `search/<stage>.<search>-<n>.train.parquet`.
    """
    prm = Prm.load(args.prm, device=PartialState().device) if args.prm else None
    files = []
    with job.opened(path) as teacher, whole_weights():
        engine = LikelihoodRanker(teacher.catalog, teacher.model)
        searcher = Searcher(job, args, stage, teacher, engine, prm)
        rows = list(job.rows("train", teacher, n_examples))
        for search, n in _asked(args):
            if search == "plain":
                continue
            mode = search_mode(search, n)
            file = job.folder / FOLDER / f"{stage}.{mode}.train.parquet"
            files.append(file)
            found = searcher.answers(rows, searcher.hows(search, max(1, n))[0])
            if PartialState().is_main_process:
                file.parent.mkdir(parents=True, exist_ok=True)
                paths = [dataclasses.replace(one, policy=stage, split="train", model=str(path)) for one in found.paths]
                write_table(paths_table(paths), file)
    return files
