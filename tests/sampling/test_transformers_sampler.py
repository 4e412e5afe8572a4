import pytest
import torch

import anyo_rl.sampling.seeds as seeds_module
import anyo_rl.sampling.transformers as sampler_module
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.teacher.tokens import Tokens


@pytest.fixture
def contexts(small_tokens: Tokens) -> list[list[int]]:
    return [small_tokens.context_ids(text) for text in ("History:\nAlien\nNext:\n", "x", "Toys\nmug\n")]


def greedy_by_hand(model, context: list[int], stops: set[int], most: int) -> tuple[int, ...]:
    """Greedy decoding without `generate`, one context at a time."""
    written: list[int] = []
    while len(written) < most and not (written and written[-1] in stops):
        with torch.no_grad():
            written.append(int(model(torch.tensor([context + written])).logits[0, -1].argmax()))
    return tuple(written)


@pytest.mark.parametrize("own", [{}, {"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}, {"num_beams": 3}])
def test_greedy_is_greedy_whatever_the_checkpoint_says(small_teacher, small_tokens, contexts, own):
    config = small_teacher.generation_config
    config.do_sample, config.top_k, config.temperature, config.top_p = True, 5, 0.6, 0.9
    config.suppress_tokens = [int(small_teacher(torch.tensor([contexts[0]])).logits[0, -1].argmax())] if own else None
    config.update(**own)
    before = config.to_dict()
    sampler = TransformersSampler(small_teacher, small_tokens, cache_tokens=40)
    found = sampler.sample(contexts, Sampling(temperature=0, max_new_tokens=8))
    stops = {small_tokens.eos_id, small_tokens.marker_id}
    assert [row[0].token_ids for row in found] == [greedy_by_hand(small_teacher, c, stops, 8) for c in contexts]
    assert small_teacher.generation_config is config
    assert config.to_dict() == before


def test_sampling_takes_no_top_k_from_the_checkpoint(small_teacher, small_tokens, contexts):
    small_teacher.generation_config.top_k = 1
    small_teacher.generation_config.min_p = 0.99
    rows = TransformersSampler(small_teacher, small_tokens).sample(
        contexts[:1], Sampling(n=50, temperature=3, max_new_tokens=1)
    )
    assert len({sample.token_ids for sample in rows[0]}) > 10


def prefer(model, token: int) -> None:
    """Makes the model write one token above all others."""
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    head.bias.data[token] = 50.0
    model.lm_head = head


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_stops_at_the_marker_and_at_the_end(small_teacher, small_tokens, contexts, temperature):
    sampler = TransformersSampler(small_teacher, small_tokens, with_log_probs=True)
    for stop in (small_tokens.marker_id, small_tokens.eos_id):
        prefer(small_teacher, stop)
        for row in sampler.sample(contexts, Sampling(n=2, temperature=temperature, max_new_tokens=5)):
            assert [(s.token_ids, s.finish_reason) for s in row] == [((stop,), "stop")] * 2
            assert row[0].log_probs == pytest.approx((0.0,), abs=1e-6)
    prefer(small_teacher, 7)
    for row in sampler.sample(contexts, Sampling(temperature=temperature, max_new_tokens=5)):
        assert row[0].token_ids == (7,) * 5
        assert row[0].finish_reason == "length"
        assert len(row[0].log_probs) == 5


def test_no_tokens_after_the_stop_of_a_shorter_neighbour(small_teacher, small_tokens, contexts):
    stops = {small_tokens.eos_id, small_tokens.marker_id}
    sampler = TransformersSampler(small_teacher, small_tokens, with_log_probs=True)
    samples = [s for row in sampler.sample(contexts, Sampling(n=40, temperature=4, max_new_tokens=200)) for s in row]
    assert len({len(s.token_ids) for s in samples}) > 3
    for sample in samples:
        assert len(sample.log_probs) == len(sample.token_ids)
        assert not stops & set(sample.token_ids[:-1])
        assert (sample.finish_reason == "stop") == (sample.token_ids[-1] in stops)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_log_probs_are_those_of_a_teacher_forced_forward(small_teacher, small_tokens, contexts, temperature):
    sampler = TransformersSampler(small_teacher, small_tokens, cache_tokens=80, with_log_probs=True)
    for context, row in zip(
        contexts, sampler.sample(contexts, Sampling(n=3, temperature=temperature, max_new_tokens=6)), strict=True
    ):
        for sample in row:
            with torch.no_grad():
                logits = small_teacher(torch.tensor([[*context, *sample.token_ids]])).logits[0]
            log_p = torch.log_softmax(logits[len(context) - 1 : -1] / (temperature or 1.0), -1)
            expected = log_p.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0].tolist()
            assert sample.log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("logits_at_once", [1, 2**26])
def test_log_probs_are_those_of_generation(small_teacher, small_tokens, contexts, logits_at_once, monkeypatch):
    monkeypatch.setattr(sampler_module, "LOGITS_AT_ONCE", logits_at_once)  # one row at a time, and all at once
    kept = []
    generate = type(small_teacher).generate

    def keep_logits(model, generation_config, **inputs):
        generation_config.output_logits = generation_config.return_dict_in_generate = True
        kept.append(generate(model, generation_config=generation_config, **inputs))
        return kept[-1].sequences

    monkeypatch.setattr(type(small_teacher), "generate", keep_logits)
    sampler = TransformersSampler(small_teacher, small_tokens, with_log_probs=True)
    rows = sampler.sample(contexts, Sampling(n=2, temperature=1.5, max_new_tokens=6))
    (output,) = kept
    by_step = torch.stack([torch.log_softmax(step.float() / 1.5, -1) for step in output.logits], 1)
    new = output.sequences[:, -by_step.shape[1] :]
    old = by_step.gather(2, new[..., None])[..., 0].tolist()
    samples = [sample for context in sorted(range(3), key=lambda i: len(contexts[i])) for sample in rows[context]]
    for sample, written, expected in zip(samples, new.tolist(), old, strict=True):
        assert list(sample.token_ids) == written[: len(sample.token_ids)]
        assert sample.log_probs == pytest.approx(expected[: len(sample.log_probs)], abs=1e-5)


def test_seeds_repeat_and_leave_other_draws_alone(small_teacher, small_tokens, contexts):
    sampler = TransformersSampler(small_teacher, small_tokens)
    torch.manual_seed(7)
    untouched = torch.rand(3)
    torch.manual_seed(7)
    small_teacher.train()
    first = sampler.sample(contexts, Sampling(n=4, seed=1, max_new_tokens=6))
    assert torch.equal(torch.rand(3), untouched)
    assert small_teacher.training
    torch.manual_seed(8)
    assert sampler.sample(contexts, Sampling(n=4, seed=1, max_new_tokens=6)) == first
    assert sampler.sample(contexts, Sampling(n=4, seed=2, max_new_tokens=6)) != first
    assert len({sample.token_ids for sample in first[0]}) > 1  # the draws of one prompt are not copies


def test_samples_come_back_in_the_order_of_their_contexts(small_teacher, small_tokens, contexts):
    sampler = TransformersSampler(small_teacher, small_tokens, cache_tokens=1)
    together = TransformersSampler(small_teacher, small_tokens).sample(
        contexts, Sampling(n=2, temperature=0, max_new_tokens=4)
    )
    assert together == sampler.sample(contexts, Sampling(n=2, temperature=0, max_new_tokens=4))
    assert together[::-1] == sampler.sample(contexts[::-1], Sampling(n=2, temperature=0, max_new_tokens=4))
    assert [len(row) for row in together] == [2, 2, 2]
    assert sampler.sample([], Sampling(n=2)) == []
    assert together[0][0].log_probs is None


@pytest.mark.parametrize("cache_tokens", [1, 30, 100, 10_000])
def test_a_batch_fits_the_cache(small_teacher, small_tokens, contexts, cache_tokens, monkeypatch):
    """A batch is as wide as its longest context and completion; one that is too long for the cache comes alone."""
    shapes = []
    generate = type(small_teacher).generate

    def keep_shape(model, input_ids, **inputs):
        shapes.append(tuple(input_ids.shape))
        return generate(model, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(small_teacher), "generate", keep_shape)
    n, most = 5, 6
    TransformersSampler(small_teacher, small_tokens, cache_tokens).sample(contexts, Sampling(n, max_new_tokens=most))
    assert sum(rows for rows, _ in shapes) == n * len(contexts)
    assert all(rows == 1 or rows * (width + most) <= cache_tokens for rows, width in shapes)
    widest = max(map(len, contexts)) + most
    assert len(shapes) <= sum(1 + n * (len(c) + most) // max(cache_tokens - widest, len(c) + most) for c in contexts)


def test_lines_end_at_line_breaks_and_keep_their_limits(small_teacher, small_tokens, contexts):
    """A line ends at the first line break, marker, end of sequence, or at its own limit."""
    (line_break,) = small_tokens.tokenizer.encode("\n", add_special_tokens=False)
    assert line_break in small_tokens.break_ids
    assert not {small_tokens.marker_id, small_tokens.eos_id} & set(small_tokens.break_ids)
    bias = torch.zeros(small_teacher.config.vocab_size)
    bias[line_break] = 6.0
    head = torch.nn.Linear(small_teacher.config.hidden_size, small_teacher.config.vocab_size)
    head.weight, head.bias = small_teacher.lm_head.weight, torch.nn.Parameter(bias)
    small_teacher.lm_head = head
    sampler = TransformersSampler(small_teacher, small_tokens, with_log_probs=True)
    hot = Sampling(temperature=4.0, seed=3)
    lines = sampler.sample_lines(contexts * 8, hot, [9, 1, 4] * 8, [str(i) for i in range(24)])
    ends = {*small_tokens.break_ids, small_tokens.marker_id, small_tokens.eos_id}
    for sample, limit in zip(lines, [9, 1, 4] * 8, strict=True):
        assert len(sample.token_ids) == len(sample.log_probs) <= limit
        assert not ends & set(sample.token_ids[:-1])
        assert (sample.finish_reason == "stop") == (sample.token_ids[-1] in ends)
        assert sample.finish_reason == "stop" or len(sample.token_ids) == limit
    assert {sample.token_ids[-1] in small_tokens.break_ids for sample in lines} == {True, False}
    # Alone or in another order, a draw is the same: it belongs to its key.
    alone = [sampler.sample_lines([contexts[i % 3]], hot, [[9, 1, 4][i % 3]], [str(i)])[0] for i in (5, 17, 0)]
    assert [one.token_ids for one in alone] == [lines[i].token_ids for i in (5, 17, 0)]


def test_lines_of_a_sampler_that_writes_items_are_refused(small_teacher, small_tokens, small_catalog, contexts):
    sampler = TransformersSampler(small_teacher, small_tokens, tree=small_catalog.tree)
    with pytest.raises(ValueError, match="line by line"):
        sampler.sample_lines(contexts, Sampling(), [3, 3, 3], ["a", "b", "c"])


def test_draws_of_one_context_share_what_is_read_of_it(small_teacher, small_tokens, contexts, monkeypatch):
    sampler = TransformersSampler(small_teacher, small_tokens)
    repeated, keys = [contexts[i % 3] for i in range(12)], [str(i) for i in range(12)]
    hot = Sampling(temperature=3.0, seed=1)
    shared = sampler.sample_lines(repeated, hot, [6] * 12, keys)
    monkeypatch.setattr(sampler_module, "attends_over_trees", lambda model: False)
    assert [one.token_ids for one in sampler.sample_lines(repeated, hot, [6] * 12, keys)] == [
        one.token_ids for one in shared
    ]
    assert len({one.token_ids for one in shared}) > 6


def test_a_batch_goes_on_without_those_that_have_ended(small_teacher, small_tokens, contexts, monkeypatch):
    """The same samples, log-probabilities included, for fewer rows."""
    bias = torch.zeros(small_teacher.config.vocab_size)
    bias[small_tokens.marker_id] = 9.0
    head = torch.nn.Linear(small_teacher.config.hidden_size, small_teacher.config.vocab_size)
    head.weight, head.bias = small_teacher.lm_head.weight, torch.nn.Parameter(bias)
    small_teacher.lm_head = head
    sampler = TransformersSampler(small_teacher, small_tokens, with_log_probs=True)
    hot = Sampling(n=8, temperature=2.0, max_new_tokens=20, seed=5)
    read: list[int] = []
    hook = small_teacher.get_decoder().register_forward_hook(
        lambda module, args, output: read.append(output.last_hidden_state.shape[:2].numel())
    )
    found = sampler.sample(contexts, hot)
    with_halves, read[:] = sum(read[:-1]), []  # the last forward is for log-probabilities
    monkeypatch.setattr(seeds_module, "FEW_ROWS", 1000)
    whole = sampler.sample(contexts, hot)
    hook.remove()
    assert [[s.token_ids for s in row] for row in found] == [[s.token_ids for s in row] for row in whole]
    for row, others in zip(found, whole, strict=True):
        for one, other in zip(row, others, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    lengths = {len(s.token_ids) for row in found for s in row}
    assert len(lengths) > 3
    assert with_halves < 0.75 * sum(read[:-1])
