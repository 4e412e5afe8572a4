"""Token ids: as TRL makes them, joined at the marker without ever merging over it."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from trl import GRPOTrainer

from anyo_rl.data.completion import Completion, parse
from anyo_rl.reasoning.prompts import render_prompt
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens, add_codes

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if calm %}(calm){% endif %}{% endif %}"
)
HARD_TITLES = [
    *("Alien", "Alien 3", " two  blanks ", "3", ">", "-", "(2)", "é", "🙂🙃", "日本語", "don't", "a->b", "<eos>x"),
    *("x" * 10_000, "\u202eabc", "tab\tbed", "<|im_end|> y", "-" * 50),
]
texts = st.text(max_size=40) | st.lists(st.sampled_from(["->", "<eos>", "<pad>", "-", ">", " ", "Alien"])).map("".join)


@pytest.fixture(params=["scratch", "smollm2"])
def tokens(request) -> Tokens:
    return request.getfixturevalue({"scratch": "small_tokens", "smollm2": "smollm2_tokens"}[request.param])


def tokenizer_with(*added: str, eos: str | None = "<eos>") -> PreTrainedTokenizerFast:
    """A scratch tokenizer whose only added tokens are these."""
    tokenizer = train_tokenizer(["a"], vocab_size=260)
    fresh = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str().replace('"->"', '"|>"'))
    fresh.add_tokens([AddedToken(token, normalized=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=fresh, eos_token=eos)


def as_trl(tokenizer, prompts: list, chat_template_kwargs: dict | None = None) -> list[list[int]]:
    """Prompt ids by TRL's own method."""
    trainer = SimpleNamespace(
        processing_class=tokenizer,
        _is_vlm=False,
        environment_factories=None,
        tools=None,
        chat_template=None,
        chat_template_kwargs=chat_template_kwargs or {},
    )
    return GRPOTrainer._tokenize_prompts(trainer, prompts)[0]


def encode(tokens: Tokens, text: str) -> list[int]:
    return tokens.tokenizer.encode(text, add_special_tokens=False)


def test_contexts_are_what_trl_makes_of_text(tokens):
    prompts = [render_prompt(titles) for titles in ([], ["Alien"], ["Alien 3", "日本語 🙂"])]
    assert [tokens.context_ids(prompt) for prompt in prompts] == as_trl(tokens.tokenizer, prompts)


def test_contexts_are_what_trl_makes_of_chats(small_tokens):
    tokenizer = train_tokenizer(["Alien"], vocab_size=300)
    tokenizer.chat_template = CHAT_TEMPLATE
    chats = [render_prompt(titles, "chat") for titles in ([], ["Alien"], ["Alien 3", "日本語 🙂"])]
    ids = [Tokens.of(tokenizer).context_ids(chat) for chat in chats]
    assert ids == as_trl(tokenizer, chats)
    assert all(isinstance(token, int) for row in ids for token in row)
    assert tokenizer.decode(ids[0]).endswith("[assistant]")


def test_contexts_are_what_trl_makes_with_arguments_of_the_chat_template():
    tokenizer = train_tokenizer(["Alien"], vocab_size=300)
    tokenizer.chat_template = CHAT_TEMPLATE
    chats = [render_prompt(["Alien"], "chat")]
    calm = Tokens.of(tokenizer, chat_template_kwargs={"calm": True})
    assert [calm.context_ids(chat) for chat in chats] == as_trl(tokenizer, chats, {"calm": True})
    assert tokenizer.decode(calm.context_ids(chats[0])).endswith("[assistant](calm)")
    assert calm.context_ids(chats[0]) != Tokens.of(tokenizer).context_ids(chats[0])
    assert calm.context_ids("Alien") == Tokens.of(tokenizer).context_ids("Alien")


def test_a_chat_needs_a_chat_template(small_tokens):
    with pytest.raises(ValueError, match="has no chat template; set prompt_style to text"):
        small_tokens.context_ids(render_prompt(["Alien"], "chat"))


def test_no_prompt_of_ours_holds_the_marker(small_tokens):
    tokenizer = train_tokenizer(["Alien"], vocab_size=300)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokens = Tokens.of(tokenizer)
    for prompt in (render_prompt(["Alien -> Aliens"], "chat"), render_prompt(["Alien -> Aliens"], "text")):
        assert tokens.marker_id not in tokens.context_ids(prompt)


def test_a_marked_context_ends_at_the_first_marker(small_tokens):
    marker, eos = small_tokens.marker_id, small_tokens.eos_id
    for written, expected in (
        ((5, 6, marker), [5, 6]),
        ((5, 6), [5, 6]),
        ((5, eos), [5]),
        ((), []),
        ((marker,), []),
        ((5, marker, 6, marker, 7), [5]),
        ((5, marker, 6, eos), [5]),
    ):
        assert small_tokens.marked_context((1, 2), written) == [1, 2, *expected, marker]
        assert small_tokens.marked_context([1, 2], list(written)) == [1, 2, *expected, marker]


def test_contexts_of_smollm2_chats(smollm2_tokens):
    chats = [render_prompt(["Alien"], "chat")]
    assert [smollm2_tokens.context_ids(chat) for chat in chats] == as_trl(smollm2_tokens.tokenizer, chats)


@pytest.mark.parametrize("title", HARD_TITLES)
def test_item_path_is_the_title_after_context_and_marker(tokens, title):
    title = tokens.safe_text(title)
    marker = tokens.tokenizer.convert_ids_to_tokens(tokens.marker_id)
    for before in ("", "History:\nAlien\nNext:\n", "likes tea ", "ends in -", "x\n\n"):
        start = encode(tokens, f"{before}{marker}")
        whole = encode(tokens, f"{before}{marker} {title}")
        assert whole[: len(start)] == start
        assert whole[len(start) :] == tokens.item_ids(title)[:-1]
    assert tokens.item_ids(title)[-1] == tokens.tokenizer.eos_token_id


@settings(max_examples=50)
@given(texts, texts)
def test_item_path_property(small_tokens, before, title):
    title = small_tokens.safe_text(title) or "x"
    assert encode(small_tokens, f"{before}-> {title}") == [
        *encode(small_tokens, f"{before}->"),
        *small_tokens.item_ids(title)[:-1],
    ]


@settings(max_examples=50)
@given(texts)
def test_safe_text_takes_control_tokens_out(small_tokens, text):
    safe = small_tokens.safe_text(text)
    assert safe == " ".join(safe.split()) == small_tokens.safe_text(safe)
    assert not set(encode(small_tokens, safe)) & {small_tokens.marker_id, small_tokens.eos_id, 0}
    for control in ("->", "<eos>", "<pad>"):
        assert control not in safe


def test_safe_text_by_hand(small_tokens):
    assert small_tokens.safe_text("a->b<eos> c\n\td<pad>") == "a b c d"
    assert small_tokens.safe_text("-<eos>>") == "- >"  # taking one out never makes another
    assert small_tokens.safe_text("<e<pad>os>") == "<e os>"
    assert small_tokens.safe_text("->") == ""


def test_safe_text_takes_out_every_added_token_of_smollm2(smollm2_tokens):
    assert smollm2_tokens.safe_text("a<file_sep>b<|im_end|>c-><jupyter_text>d <|im_<|im_end|>end|>") == (
        "a b c d <|im_ end|>"
    )


def test_safe_text_keeps_letters_that_a_tokenizer_holds_as_added_tokens():
    tokens = Tokens.of(tokenizer_with("->", "ü", "Straße", "<tag>", " x "))
    assert tokens.safe_text("Grüße: Straße 3") == "Grüße: Straße 3"
    assert tokens.safe_text("a<tag>b x c<eos>") == "a b x c"
    letters = Tokens.of(tokenizer_with("END"), "END")  # the marker goes, whatever it is
    assert letters.safe_text("aENDb") == "a b"


def test_item_titles_reads_paths_back(tokens):
    titles = [tokens.safe_text(title) for title in HARD_TITLES]
    assert tokens.item_titles([tokens.item_ids(title) for title in titles]) == titles
    assert tokens.item_titles([]) == []


def test_steps_with_the_marker_are_refused(tokens):
    marker = tokens.tokenizer.convert_ids_to_tokens(tokens.marker_id)
    eos = tokens.tokenizer.eos_token
    for bad in ("a -> b", f"a {marker} b", f"a {eos}", "two\nlines", "a\n"):
        with pytest.raises(ValueError, match=r"marker|control token"):
            tokens.reasoning_ids(["fine", bad])
    for bad in (f"a {marker} b", f"{eos}", ""):
        with pytest.raises(ValueError, match="is empty or holds a control token"):
            tokens.item_ids(bad)


def test_reasoning_ends_with_the_marker(tokens):
    marker = tokens.tokenizer.convert_ids_to_tokens(tokens.marker_id)
    assert tokens.reasoning_ids([]) == [tokens.marker_id]
    assert tokens.reasoning_ids(iter(["likes tea", "wants a mug"])) == encode(
        tokens, f"likes tea\nwants a mug{marker}"
    )


def test_decode_shows_the_arrow_and_agrees_with_parse(tokens):
    ids = [*tokens.reasoning_ids(["likes tea", "wants 日本語"]), *tokens.item_ids("Alien 3")]
    assert tokens.decode(ids) == "likes tea\nwants 日本語 -> Alien 3"
    assert parse(tokens.decode(ids)) == Completion(("likes tea", "wants 日本語"), "Alien 3", True)
    assert tokens.decode(tokens.reasoning_ids(["likes tea"])) == "likes tea ->"
    assert tokens.decode([tokens.marker_id]) == "->"
    assert tokens.decode([]) == ""
    assert tokens.decode(tuple(ids[:2])) == tokens.tokenizer.decode(ids[:2])


def test_an_arrow_spelled_out_is_not_the_marker(tokens):
    spelled = [*encode(tokens, "a -"), *encode(tokens, ">"), *encode(tokens, " b")]
    assert tokens.marker_id not in spelled
    assert tokens.decode(spelled) == "a → b"
    assert not parse(tokens.decode(spelled)).marked
    assert parse(tokens.decode([*spelled, *tokens.reasoning_ids([]), *tokens.item_ids("c")])) == Completion(
        ("a → b",), "c", True
    )


@given(data=st.data())
def test_decode_agrees_with_parse_on_any_ids(small_tokens, data):
    ids = data.draw(st.lists(st.integers(0, len(small_tokens.tokenizer) - 1), max_size=12))
    assert parse(small_tokens.decode(ids)).marked == (small_tokens.marker_id in ids)


def test_where_steps_end(small_tokens):
    def ends(text, *after):
        ids = small_tokens.tokenizer.encode(text, add_special_tokens=False)
        found = small_tokens.step_ends([*ids, *after])
        return [small_tokens.tokenizer.decode(ids[a:b]) for a, b in zip([0, *found], found, strict=False)]

    marker = small_tokens.marker_id
    assert ends("likes tea\n wants a mug", marker, 5, 6) == ["likes tea\n", " wants a mug"]
    assert ends("likes tea\n\n \nwants a mug\n") == ["likes tea\n", "\n \nwants a mug\n"]
    assert ends("one", small_tokens.eos_id) == ["one"]
    assert small_tokens.step_ends([marker]) == small_tokens.step_ends([]) == []
    assert ends("a\u2028b\r\nc") == ["a\u2028", "b\r", "\nc"]  # a line break of three tokens


@given(data=st.data())
def test_step_ends_agree_with_parse_on_any_ids(small_tokens, data):
    ids = data.draw(
        st.lists(st.one_of(st.integers(0, 299), st.sampled_from(small_tokens.tokenizer.encode("\n a"))), max_size=40)
    )
    ends = small_tokens.step_ends(ids)
    assert ends == sorted(set(ends))
    assert all(0 < end <= len(ids) for end in ends)
    reasoning = ids[: next((i for i, t in enumerate(ids) if t in (small_tokens.marker_id, small_tokens.eos_id)), None)]
    assert len(ends) == len(parse(small_tokens.decode(reasoning)).steps)
    for step, end in enumerate(ends, 1):  # up to there it is that many steps
        assert len(parse(small_tokens.decode(reasoning[:end])).steps) == step


def test_text_tokens_are_counted_without_special_tokens(small_tokens):
    assert small_tokens.n_text_tokens("") == 0
    for _ in range(2):  # the second time from memory
        assert small_tokens.n_text_tokens("Alien 3\n") == len(encode(small_tokens, "Alien 3\n"))


def test_the_marker_is_found_by_name_then_arrow_then_think():
    assert Tokens.of(tokenizer_with("</think>", "->")).marker_id == tokenizer_with("</think>", "->").vocab["->"]
    thinker = tokenizer_with("</think>")
    assert Tokens.of(thinker).marker_id == thinker.vocab["</think>"]
    assert (
        Tokens.of(tokenizer_with("</think>", "<spare>"), "<spare>").decode(
            [*encode(Tokens.of(thinker), "a"), thinker.vocab["</think>"] + 1]
        )
        == "a ->"
    )


def test_a_marker_that_cannot_serve_is_refused():
    with pytest.raises(ValueError, match=r"no added token '->' or '</think>'.*set marker_token"):
        Tokens.of(tokenizer_with())
    with pytest.raises(ValueError, match="no added token 'a' to serve"):  # in the vocabulary, but text merges into it
        Tokens.of(tokenizer_with("->"), "a")
    with pytest.raises(ValueError, match="'<eos>' is the end-of-sequence token"):
        Tokens.of(tokenizer_with("->"), "<eos>")
    padded = tokenizer_with("->", "<pad>")
    padded.pad_token = "<pad>"
    with pytest.raises(ValueError, match="'<pad>' has a use already"):
        Tokens.of(padded, "<pad>")
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        Tokens.of(tokenizer_with("->", eos=None))


def test_think_marker_is_shown_as_an_arrow():
    tokens = Tokens.of(tokenizer_with("</think>"))
    ids = [*tokens.reasoning_ids(["a b"]), *tokens.item_ids("c")]
    assert tokens.decode(ids) == "a b -> c"
    assert tokens.safe_text("x</think>y") == "x y"


CODES = ["<a_1>", "<a_10>", "<b_1>"]


def test_codes_are_one_token_each_and_stay_so(tmp_path):
    tokenizer = train_tokenizer([" likes tea"] * 3, vocab_size=300)
    before, titles = len(tokenizer), Tokens.of(tokenizer).item_ids("likes tea")
    assert add_codes(tokenizer, CODES) == [before, before + 1, before + 2]
    assert add_codes(tokenizer, CODES[::-1]) == [before + 2, before + 1, before]  # nothing is added twice
    assert add_codes(tokenizer, []) == []
    tokenizer.save_pretrained(tmp_path)
    for found in (tokenizer, PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        tokens = Tokens.of(found)
        assert tokens.code_ids(["<a_10>", "<b_1>"]) == [before + 1, before + 2, tokens.eos_id]
        assert tokens.item_ids("likes tea") == titles
        assert tokens.item_titles([tokens.code_ids(["<a_10>", "<b_1>"])]) == ["<a_10><b_1>"]
        completion = [*tokens.reasoning_ids(["likes tea"]), *tokens.code_ids(["<a_10>", "<b_1>"])]
        assert tokens.decode(completion) == "likes tea -> <a_10><b_1>"
        assert parse(tokens.decode(completion)) == Completion(("likes tea",), "<a_10><b_1>", True)


def test_codes_in_text_from_data_are_taken_out():
    tokenizer = train_tokenizer(["a"], vocab_size=260)
    add_codes(tokenizer, CODES)
    tokens = Tokens.of(tokenizer)
    assert tokens.safe_text("mug <a_1> oak <a_2>") == "mug oak <a_2>"
    assert tokens.safe_text("<a_<a_1>10>") == "<a_ 10>"


def test_codes_that_were_not_added_are_refused(small_tokens):
    with pytest.raises(ValueError, match=r"'<a_1>' is no added token of the tokenizer: add the codes"):
        small_tokens.code_ids(["<a_1>"])
    with pytest.raises(ValueError, match="'an empty semantic id' is no added token"):
        small_tokens.code_ids([])
