"""What a recommender answers is what the run's evaluation kept, of a run made by the documented commands."""

import polars as pl
import pytest

from anyo_rl.serve.recommender import Recommender

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", ["sft", "grpo", "direct"])
def test_answers_are_those_of_the_evaluation(finished_run, stage):
    with Recommender.from_pretrained(finished_run.folder, stage=stage) as recommender:
        asked = recommender.examples(recommender.task.args.max_test)
        for mode in ("plain",) if stage == "direct" else ("greedy", "mixture"):
            kept = pl.read_parquet(finished_run.folder / "answers" / f"{stage}.{mode}.parquet")
            found = recommender.answer(asked, k=20, search=mode)
            assert [request.name for request in asked] == kept["example_id"].to_list()
            assert [[item.item_id for item in one.items] for one in found] == kept["top_ids"].to_list()
            assert [one.target_rank for one in found] == kept["rank"].to_list()
