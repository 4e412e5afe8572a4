"""Chat models that think, from SFT to GRPO: everything reads and writes the same literal text."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from trl import ModelConfig

from anyo_rl import plan
from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.prompts import render_prompt
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import How, answer
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import REASONING_TOKENS, THINKING_TOKENS, Job
from anyo_rl.teacher.make import make_tiny_teacher
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.sft import sft_dataset
from anyo_rl.values.step_values import forced_answer_values
from tests.conftest import SMALL_TITLES
from tests.training.helpers import by_rank, lift, reasoner, trained_batches, weights_of

ROWS = [
    Row(example_id=f"u{u}:1", user_id=f"u{u}", prompt=render_prompt(titles, "chat"), history=[], target_id=target)
    for u, (titles, target) in enumerate([(["Alien"], "i1"), (["mug", "Toys"], "i9"), (["Alien", "x"], "i4")])
]
ROWS[2] = replace(ROWS[2], excluded=("i2",))
TEMPLATES = ["qwen3_tokenizer", "qwen3_2507_tokenizer"]


@pytest.fixture(params=TEMPLATES)
def tokens(request) -> Tokens:
    return Tokens.of(request.getfixturevalue(request.param))


@pytest.fixture
def catalog(tokens) -> Catalog:
    ids = [f"i{index}" for index in range(len(SMALL_TITLES))]
    return build_catalog(pl.DataFrame({"item_id": ids, "title": SMALL_TITLES}), tokens)


@pytest.fixture
def teacher(tokens):
    model = make_tiny_teacher(tokens.tokenizer, hidden_size=32, n_layers=2, n_heads=2, max_length=512)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def text_of(tokens: Tokens, ids) -> str:
    return tokens.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def written(tokens: Tokens, row: Row, thought: str) -> str:
    """The text of a prompt, a thought and the line breaks behind it."""
    prompt = tokens.tokenizer.apply_chat_template(row.prompt, tokenize=False, add_generation_prompt=True)
    return f"{prompt.removesuffix(f'<think>{chr(10)}')}<think>\n{thought}\n</think>\n\n"


def literal_log_probs(model, tokens: Tokens, before: str) -> np.ndarray:
    """(N,) log-probability of each item: that of its text's tokens, each among those with which items go on there."""
    encode = partial(tokens.tokenizer.encode, add_special_tokens=False)
    start = len(encode(before.removesuffix("\n\n")))
    texts = [encode(f"{before}{title}<|im_end|>") for title in SMALL_TITLES]
    found = []
    for ids in texts:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        log_p = 0.0
        for place in range(start, len(ids)):
            going_on = sorted({other[place] for other in texts if other[:place] == ids[:place]})
            log_p += logits[place - 1][going_on].log_softmax(0)[going_on.index(ids[place])].item()
        found.append(log_p)
    return np.array(found)


def test_sft_targets_token_by_token(tokens, catalog):
    encode = partial(tokens.tokenizer.encode, add_special_tokens=False)
    rationales = {"u0:1": [("likes Alien.", "wants 3")]}
    (row,) = sft_dataset(ROWS, catalog, tokens, rationales)
    context = tokens.context_ids(ROWS[0].prompt)
    whole = encode(f"{written(tokens, ROWS[0], 'likes Alien.' + chr(10) + 'wants 3')}Alien 3<|im_end|>")
    assert row["input_ids"] == whole
    n_answer = len(encode("\n\nAlien 3<|im_end|>"))
    assert row["item_start"] == len(whole) - n_answer
    assert row["labels"] == [*[-100] * len(context), *whole[len(context) : -n_answer], *[-100] * n_answer]
    direct = sft_dataset(ROWS, catalog, tokens, None)
    for example, of_row, title in zip(direct, ROWS, ["Alien 3", "mug", "Toy Story 2"], strict=True):
        assert text_of(tokens, example["input_ids"]) == f"{written(tokens, of_row, '')}{title}<|im_end|>"
    early = sft_dataset(ROWS, catalog, tokens, rationales, early_share=1.0)
    assert len(early) == 2
    cut = {text_of(tokens, row["input_ids"][: row["item_start"]]) for row in early}
    assert cut <= {
        written(tokens, ROWS[0], t).removesuffix("\n\n") for t in ("", "likes Alien.", "likes Alien.\nwants 3")
    }
    first = sft_dataset(ROWS, catalog, tokens, rationales, item_first=True)[0]
    assert text_of(tokens, first["input_ids"]).startswith(f"{written(tokens, ROWS[0], '')}Alien 3<|im_end|>")


def test_ranks_are_those_of_the_literal_text(tokens, catalog, teacher):
    steps = ["likes Alien.", "wants 3"]
    contexts, texts = [], []
    for row in ROWS:
        context = tokens.context_ids(row.prompt)
        for n in range(3):
            ids = tokens.reasoning_ids(steps[:n], context)
            contexts.append(tokens.marked_context(context, ids))
            texts.append(written(tokens, row, "\n".join(steps[:n])))
    # Qwen3-2507's prompt has the first of the two line breaks of an empty thought: a token more than in one text.
    kept = [place for place, text in enumerate(texts) if contexts[place] == tokens.tokenizer.encode(text)[:-1]]
    assert len(kept) == (9 if "think" not in text_of(tokens, tokens.context_ids(ROWS[0].prompt)) else 6)
    expected = np.stack([literal_log_probs(teacher, tokens, texts[place]) for place in kept])
    found = DistributionRanker(catalog, teacher).log_probs([contexts[place] for place in kept]).numpy()
    assert found == pytest.approx(expected, abs=1e-4)
    targets = ["i4"] * len(kept)
    ranking = LikelihoodRanker(catalog, teacher).rank([contexts[place] for place in kept], targets, top_k=3)
    target = catalog.index["i4"]
    assert ranking.ranks_B.tolist() == ((expected >= expected[:, [target]] - 1e-9).sum(1)).tolist()
    assert ranking.log_probs_B == pytest.approx(expected[:, target], abs=1e-4)


def test_plain_answers_and_forced_ones(tokens, catalog, teacher):
    ranker = LikelihoodRanker(catalog, teacher)
    plain = answer(ROWS, ranker, None, tokens, How("plain"))
    contexts = [tokens.context_ids(row.prompt) for row in ROWS]
    empty = [[*context, *tokens.reasoning_ids([], context)] for context in contexts]
    targets, excluded = [row.target_id for row in ROWS], [row.excluded for row in ROWS]
    ranks_B = DistributionRanker(catalog, teacher).rank(empty, targets, excluded_B=excluded).ranks_B
    assert plain.ranks_U.tolist() == ranks_B.tolist()
    ids = [tokens.reasoning_ids(["likes tea.", "wants", "a mug"], context) for context in contexts]
    values_B = forced_answer_values(ROWS, ids, ranker, tokens)
    for row, context, values, rank in zip(ROWS, contexts, values_B, ranks_B, strict=True):
        asked = [tokens.reasoning_ids(steps, context) for steps in ([], ["likes tea."], ["likes tea.", "wants"])]
        found = ranker.rank([[*context, *one] for one in asked], [row.target_id] * 3, excluded_B=[row.excluded] * 3)
        assert values.tolist() == ndcg(found.ranks_B).tolist()
        assert values[0] == ndcg(np.array([rank]))[0]


def test_items_that_are_written_follow_the_line_breaks(tokens, catalog, teacher):
    sampler = TransformersSampler(teacher, tokens, tree=catalog.tree)
    contexts = [tokens.context_ids(row.prompt) for row in ROWS]
    for samples in sampler.sample(contexts, Sampling(n=3, max_new_tokens=4)):
        for sample in samples:
            _, _, item = text_of(tokens, sample.token_ids).partition("</think>\n\n")
            assert item.removesuffix("<|im_end|>") in SMALL_TITLES
            assert tokens.decode(sample.token_ids).endswith(f"-> {item.removesuffix('<|im_end|>')}")


def test_two_steps_of_grpo(tokens, catalog, teacher, tmp_path):
    lift(teacher, tokens.marker_id, 5.0)
    teacher.lm_head.bias.data[tokens.tokenizer.convert_tokens_to_ids("<think>")] = 4.0
    before = weights_of(teacher)
    settings = {"max_completion_length": 6, "learning_rate": 1e-2}
    trainer = reasoner(teacher, catalog, tokens, tmp_path, rows=ROWS, reward=by_rank, settings=settings)
    asked, score = [], trainer._score

    def scored(rows, ids, partners_B):
        contexts = [tokens.marked_context(tokens.context_ids(r.prompt), one) for r, one in zip(rows, ids, strict=True)]
        slow = DistributionRanker(catalog, teacher)
        excluded = [row.excluded for row in rows]
        ranks_B = slow.rank(contexts, [row.target_id for row in rows], excluded_B=excluded).ranks_B
        asked.append((ids, ranks_B, found := score(rows, ids, partners_B)))
        return found

    trainer._score = scored
    assert len(trained_batches(trainer)) == 2
    n_marked = 0
    for ids, ranks_B, found in asked:
        assert found.ranking.ranks_B.tolist() == ranks_B.tolist()
        n_marked += sum(tokens.marker_id in one for one in ids)
        assert all(tokens.marker_id not in one[:-1] for one in ids)  # it stops there
    assert n_marked > 4
    assert any(not torch.equal(before[name], now) for name, now in weights_of(teacher).items())


def test_how_long_a_reasoning_may_be(qwen3_tokenizer, small_tokens, tmp_path):
    for name, tokenizer in (("qwen3", qwen3_tokenizer), ("small", small_tokens.tokenizer)):
        model = make_tiny_teacher(tokenizer, hidden_size=16, n_layers=1, n_heads=2, max_length=64)
        save_teacher(model, tokenizer, tmp_path / name)
    task = SimpleNamespace(interactions=SimpleNamespace(items=None))

    def most(path, told=None):
        return Job(tmp_path, task, ModelConfig(path), TeacherArguments(max_reasoning_tokens=told)).max_reasoning_tokens

    assert most(str(tmp_path / "qwen3")) == THINKING_TOKENS == plan.Job().completion == 512
    assert most(str(tmp_path / "small")) == most(None) == REASONING_TOKENS == 64
    assert most(str(tmp_path / "qwen3"), 48) == 48
