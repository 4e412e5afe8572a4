"""Chat models that think: the literal text of Qwen3's chat template, token by token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.data.completion import Completion, parse
from anyo_rl.reasoning.prompts import render_prompt
from anyo_rl.teacher.tokens import Tokens, add_codes
from tests.teacher.test_tokens import as_trl, encode, tokenizer_with

CHAT = render_prompt(["Alien", "Toys"], "chat")
STEPS = ["likes Alien.", "wants 3"]


@pytest.fixture(params=["qwen3_tokenizer", "qwen3_2507_tokenizer"])
def tokens(request) -> Tokens:
    return Tokens.of(request.getfixturevalue(request.param))


@pytest.fixture
def qwen3(qwen3_tokenizer) -> Tokens:
    return Tokens.of(qwen3_tokenizer)


def text_of(tokens: Tokens, ids) -> str:
    return tokens.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_prompts_are_those_of_trl_and_end_as_the_template_says(qwen3_tokenizer, qwen3_2507_tokenizer):
    for tokenizer, end in ((qwen3_tokenizer, "assistant\n"), (qwen3_2507_tokenizer, "assistant\n<think>\n")):
        tokens = Tokens.of(tokenizer)
        assert tokens.thinks
        assert [tokens.context_ids(CHAT)] == as_trl(tokenizer, [CHAT])
        assert text_of(tokens, tokens.context_ids(CHAT)).endswith(f"<|im_end|>\n<|im_start|>{end}")
    told = Tokens.of(qwen3_tokenizer, "</think>", {"enable_thinking": True})
    assert told.context_ids(CHAT) == Tokens.of(qwen3_tokenizer).context_ids(CHAT)


def test_a_template_that_ends_the_thought_itself_is_refused(qwen3_tokenizer):
    calm = Tokens.of(qwen3_tokenizer, chat_template_kwargs={"enable_thinking": False})
    with pytest.raises(ValueError, match=r"ends the thought inside the prompt .*'enable_thinking': False.*leave"):
        calm.context_ids(CHAT)
    assert calm.context_ids("Alien\n") == encode(calm, "Alien\n")  # plain text knows no template
    other = Tokens.of(qwen3_tokenizer, "<|im_start|>", {"enable_thinking": False})  # its own marker, its own format
    assert not other.thinks
    assert text_of(other, other.context_ids(CHAT)).endswith("<think>\n\n</think>\n\n")


def test_an_example_is_the_text_that_the_chat_template_writes(tokens):
    context = tokens.context_ids(CHAT)
    ids = [*context, *tokens.reasoning_ids(STEPS, context), *tokens.item_ids("Alien 3")]
    answer = {"role": "assistant", "reasoning_content": "\n".join(STEPS), "content": "Alien 3"}
    written = tokens.tokenizer.apply_chat_template([*CHAT, answer], tokenize=False)
    assert f"{text_of(tokens, ids)}\n" == written
    assert [*ids, *encode(tokens, "\n")] == encode(tokens, written)  # tokenised as one text
    assert ids[-1] == tokens.eos_id == tokens.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_tokens_by_hand(qwen3_tokenizer, qwen3_2507_tokenizer):
    opens, ends = qwen3_tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    (line,), (blank,), (stop,) = (qwen3_tokenizer.encode(text) for text in ("\n", "\n\n", ".\n"))
    alien = qwen3_tokenizer.encode("Alien")
    first, later = Tokens.of(qwen3_tokenizer), Tokens.of(qwen3_2507_tokenizer)
    of_first, of_later = first.context_ids(CHAT), later.context_ids(CHAT)
    assert first.reasoning_ids(["Alien"], of_first) == [opens, line, *alien, line, ends]
    assert later.reasoning_ids(["Alien"], of_later) == [*alien, line, ends]
    assert first.reasoning_ids(["Alien."]) == [opens, line, *alien, stop, ends]  # a text prompt opens nothing
    assert first.reasoning_ids([], of_first) == [opens, blank, ends]
    assert later.reasoning_ids([], of_later) == [line, ends]  # the prompt has the other line break
    assert later.reasoning_ids(["Alien"], of_later[:-1]) == [line, *alien, line, ends]  # as other templates end
    assert first.item_ids("Alien") == later.item_ids("Alien") == [blank, *alien, first.eos_id]


def test_an_answer_without_reasoning_is_that_of_qwen3_without_thinking(tokens):
    context = tokens.context_ids(CHAT)
    ids = [*tokens.answered_now(context, []), *tokens.item_ids("mug")]
    assert text_of(tokens, ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nmug<|im_end|>")
    assert tokens.marked_context(context, []) == tokens.answered_now(context, [])
    assert tokens.marked_context(context, tokens.reasoning_ids([], context)) == tokens.answered_now(context, [])
    assert tokens.decode(ids[len(context) :]) == "-> mug"


def test_forced_answers_end_the_thought_as_a_whole_one_ends(tokens):
    context = tokens.context_ids(CHAT)
    ids = tokens.reasoning_ids([*STEPS, "or not"], context)
    ends = tokens.step_ends(ids)
    assert ends[-1] == len(ids) - 1
    for n, end in enumerate([0, *ends]):
        answered = tokens.answered_now(context, ids[:end])
        assert answered == [*context, *tokens.reasoning_ids([*STEPS, "or not"][:n], context)]
        assert tokens.marked_context(context, ids[:end]) == answered  # a reasoning that was cut off there
    assert tokens.marked_context(context, ids) == [*context, *ids]


def test_completions_are_read_whatever_their_tags(qwen3):
    def ids(text):
        return encode(qwen3, text)

    context = qwen3.context_ids(CHAT)
    for text in ("<think>\na\nb\n</think>\n\nc", "a\nb\n</think>c", "<think><think>a\nb</think>\n\nc<|im_end|>"):
        found = qwen3.decode(ids(text))
        assert parse(found) == Completion(("a", "b"), "c", True)
        first, _ = qwen3.step_ends(ids(text))
        assert text_of(qwen3, ids(text)[:first]).endswith("a\n")
        marked = qwen3.marked_context(context, ids(text))
        assert marked == [*context, *ids(f"{text.partition('</think>')[0]}</think>")]  # as it was written
    for text in ("<think>\na\nb", "a\nb\n", "<think>\n<think>\na\nb\n<|im_end|>"):  # it never ends
        assert parse(qwen3.decode(ids(text))) == Completion(("a", "b"), None, False)
        marked = text_of(qwen3, qwen3.marked_context(context, ids(text)))
        assert marked.endswith("a\nb\n</think>")
    for text in ("", "<think>", "<think>\n", "\n", "<|im_end|>"):
        assert qwen3.step_ends(ids(text)) == []
        assert qwen3.marked_context(context, ids(text)) == qwen3.answered_now(context, [])


@given(data=st.data())
def test_any_tokens_may_be_answered_after(qwen3_tokenizer, data):
    tokens = Tokens.of(qwen3_tokenizer)
    often = [*range(len(qwen3_tokenizer) - 5, len(qwen3_tokenizer)), *qwen3_tokenizer.encode("\n\n\n a.\n")]
    ids = data.draw(st.lists(st.integers(0, len(qwen3_tokenizer) - 1) | st.sampled_from(often), max_size=12))
    completion = parse(tokens.decode(ids))
    assert completion.marked == (tokens.marker_id in ids)
    assert len(tokens.step_ends(ids)) == len(completion.steps) or tokens.eos_id in ids
    marked = tokens.marked_context([5], ids)
    assert marked[-1] == tokens.marker_id
    assert marked.count(tokens.marker_id) == 1
    if not completion.marked:
        assert text_of(tokens, marked[1:]).endswith("\n</think>")


def test_tags_in_data_and_in_steps(tokens):
    assert tokens.safe_text("a<think>b</think> c") == "a b c"
    for bad in ("a <think> b", "</think>", "a <|im_end|>"):
        with pytest.raises(ValueError, match="control token"):
            tokens.reasoning_ids(["fine", bad])
        with pytest.raises(ValueError, match="control token"):
            tokens.item_ids(bad)


def test_semantic_ids_stand_behind_the_line_breaks(qwen3_tokenizer):
    tokenizer = type(qwen3_tokenizer)(tokenizer_object=qwen3_tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    codes = add_codes(tokenizer, ["<a_1>", "<b_2>"])
    tokens = Tokens.of(tokenizer)
    path = tokens.code_ids(["<a_1>", "<b_2>"])
    assert path == [*encode(tokens, "\n\n"), *codes, tokens.eos_id]
    assert [tokens.marker_id, *path] == encode(tokens, "</think>\n\n<a_1><b_2><|im_end|>")
    assert tokens.item_titles([path]) == ["<a_1><b_2>"]


def test_a_tokenizer_that_opens_no_thought_has_the_plain_format():
    tokens = Tokens.of(tokenizer_with("</think>"))
    assert not tokens.thinks
    assert tokens.reasoning_ids(["a"]) == [*encode(tokens, "a"), tokens.marker_id]
    both = Tokens.of(tokenizer_with("<think>", "</think>", "->"))
    assert not both.thinks  # its marker is the arrow
