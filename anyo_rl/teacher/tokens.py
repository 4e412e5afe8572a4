"""The only place where context, marker and item become token ids, for SFT, RL, the engine and vLLM alike.

A sequence is `context + reasoning + marker + item path`. The context comes from the prompt exactly as TRL tokenises
it, so that ids agree inside and outside the trainer; reasoning and path are tokenised apart and joined at the marker,
which is one token that no text is merged across. An item path ends with the end-of-sequence token, so that no path is
the beginning of another ("Alien" and "Alien 3"). What comes before is the item's title, or the codes of its semantic
id, an added token each.

Where the marker is `</think>`, all of it is written as such chat models were trained to write: `<think>`, a line
break, the reasoning, a line break, `</think>`, two line breaks and the item. The tag and the line breaks before the
marker belong to the reasoning, those after it to the item path; a chat template may have written the tag already. An
answer without reasoning is `<think>`, two line breaks, `</think>`, two line breaks and the item.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from anyo_rl.data.completion import MARKER, Prompt, render, split_steps
from anyo_rl.run.settings import UsageError

THINK_START, THINK_END = "<think>", "</think>"
CODE = re.compile(r"<([a-z])_([0-9]+)>")  # of a semantic id, or the token of an item
THOUGHT = re.compile(r"<thought_([0-9]+)>")  # without words: an added token
LONGEST_TAIL = 8  # tokens of white space behind the tag that a prompt ends with, at most


def thought_tokens(n_thoughts: int) -> tuple[str, ...]:
    """Names of the added tokens of thoughts without words.

    >>> thought_tokens(2)
    ('<thought_1>', '<thought_2>')
    """
    return tuple(f"<thought_{number}>" for number in range(1, n_thoughts + 1))


def known_thoughts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The thoughts that a tokenizer has."""
    return [token for token in tokenizer.get_added_vocab() if THOUGHT.fullmatch(token)]


def add_codes(tokenizer: PreTrainedTokenizerBase, codes: Iterable[str]) -> list[int]:
    """Makes each code of semantic ids (`<a_12>`) one token, where it is not; do this before `Tokens.of`.

    Returns:
        The ids of the codes, in their order.
    """
    codes = list(codes)
    known = tokenizer.get_added_vocab()
    # Not special: people see them in a decoded answer, and `skip_special_tokens` would take them out.
    tokenizer.add_tokens([AddedToken(code, normalized=False) for code in codes if code not in known])
    return [int(token_id) for token_id in tokenizer.convert_tokens_to_ids(codes)]


@dataclass(frozen=True)
class Tokens:
    """A tokenizer together with its marker.

    Attributes:
        tokenizer: any Hugging Face tokenizer with an end-of-sequence token.
        marker_id: id of the one existing token that stands for `->`.
        chat_template_kwargs: what chat templates get besides the messages (`enable_thinking`, …): the same that
            TRL's trainers are given, or ranks and samples are read off different prompts.
        open_id: id of `<think>`, where completions are written as chat models that think write them; `None` elsewhere.
    """

    tokenizer: PreTrainedTokenizerBase
    marker_id: int
    chat_template_kwargs: Mapping[str, Any] | None = None
    open_id: int | None = None

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        marker_token: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "Tokens":
        """Finds the marker's token: the one named, else `->`, else `</think>`.

        With `</think>`, and a `<think>` beside it, completions are written as chat models that think write them.

        Raises:
            ValueError: there is no such token, it is not one token, or there is no end-of-sequence token.
        """
        names = [marker_token] if marker_token else [MARKER, THINK_END]
        # Only added tokens are safe: text is never merged across them, and they are never produced by merging text.
        added = tokenizer.get_added_vocab()
        found = next((added[name] for name in names if name in added), None)
        if found is None:
            raise UsageError(
                f"the tokenizer has no added token {' or '.join(map(repr, names))} to serve as the marker; set "
                f"marker_token to an unused one of {sorted(added)[:20]}"
            )
        if tokenizer.eos_token_id is None:
            raise UsageError("the tokenizer has no end-of-sequence token; item paths need one to end on")
        if found == tokenizer.eos_token_id:
            raise UsageError(f"marker_token {names[0]!r} is the end-of-sequence token; take another one")
        if found in (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id):
            raise UsageError(
                f"marker_token {names[0]!r} has a use already (padding, the beginning of a text, or what is unknown): "
                f"take an unused one of {sorted(added)[:20]}"
            )
        return cls(
            tokenizer, found, chat_template_kwargs, added.get(THINK_START) if found == added.get(THINK_END) else None
        )

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """What the tokenizer would read as a control token, codes aside, and the marker people see."""
        # An added token of letters alone ("ü" in a small vocabulary) is text: to take it out would mutilate titles.
        added = self.tokenizer.added_tokens_decoder.values()
        control = {token.content for token in added if token.special or not token.content.strip().isalnum()}
        control |= {MARKER, self._marker, *self.tokenizer.all_special_tokens}
        control = {text for text in control if not CODE.fullmatch(text)}  # of these there may be a hundred thousand
        return re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))

    @cached_property
    def _added(self) -> dict[str, int]:
        return self.tokenizer.get_added_vocab()

    @property
    def _marker(self) -> str:
        return self.tokenizer.convert_ids_to_tokens(self.marker_id)

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {}

    @cached_property
    def _breaks(self) -> dict[int, bool]:
        return {}

    @property
    def thinks(self) -> bool:
        """Whether completions are written as chat models that think write them."""
        return self.open_id is not None

    @property
    def eos_id(self) -> int:
        """Id of the end-of-sequence token, which ends every item path."""
        return self.tokenizer.eos_token_id

    def safe_text(self, text: str) -> str:
        """Takes control tokens and markers out of text that comes from data: it must never act as one."""
        text = CODE.sub(lambda code: " " if code[0] in self._added else code[0], text)
        return " ".join(self._control.sub(" ", text).split())

    def context_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt (plain text or chat messages), as TRL's trainers make them.

        Raises:
            ValueError: chat messages, but the tokenizer has no chat template, or one that ends the thought itself.
        """
        if isinstance(prompt, str):
            return list(self.tokenizer(text=prompt)["input_ids"])
        if self.tokenizer.chat_template is None:
            raise UsageError(
                "the prompt is a chat, but the teacher's tokenizer has no chat template; set prompt_style to text, or "
                "take a chat model"
            )
        encoded = self.tokenizer.apply_chat_template(
            prompt,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **(self.chat_template_kwargs or {}),
        )
        ids = list(encoded["input_ids"])
        if self.thinks and self._tail(ids)[0] == self.marker_id:
            raise UsageError(
                f"the chat template ends the thought inside the prompt (chat_template_kwargs are "
                f"{dict(self.chat_template_kwargs or {})}), and reasonings are to come before {self._marker}: leave "
                f"enable_thinking out, or set it to true where the template asks for that. A direct teacher needs the "
                f"same: its empty thought is a part of its answer"
            )
        return ids

    def _tail(self, context_ids: Sequence[int]) -> tuple[int | None, str]:
        """The tag that a prompt ends with, if it does, and the white space behind it."""
        for place in range(len(context_ids) - 1, max(-1, len(context_ids) - 2 - LONGEST_TAIL), -1):
            if context_ids[place] in (self.open_id, self.marker_id):
                space = self.tokenizer.decode(list(context_ids[place + 1 :]), clean_up_tokenization_spaces=False)
                return (None, "") if space.strip() else (context_ids[place], space)
        return None, ""

    def marked_context(self, context_ids: Sequence[int], completion_ids: Sequence[int]) -> list[int]:
        """Context, reasoning and marker: where the answer to a completion is read off.

        Args:
            context_ids: the prompt.
            completion_ids: what was written. Only what comes before the first marker counts, without end-of-sequence;
                a reasoning that never reached the marker is made to answer where it ends. One that reached it stays
                as it is, whether or not it has the tag and the line breaks of a chat model that thinks.
        """
        ids = list(completion_ids)
        marked = self.marker_id in ids
        reasoning = [token for token in ids[: ids.index(self.marker_id) if marked else None] if token != self.eos_id]
        if self.thinks and not marked:
            return self.answered_now(context_ids, reasoning)
        return [*context_ids, *reasoning, self.marker_id]

    def n_text_tokens(self, text: str, *, remember: bool = True) -> int:
        """How many tokens a piece of text takes in a prompt; remembered, for titles come again and again.

        Args:
            text: the piece.
            remember: not for texts of one prompt alone, of which there is no end.
        """
        if (known := self._counts.get(text)) is not None:
            return known
        n_tokens = len(self.tokenizer.encode(text, add_special_tokens=False))
        if remember:
            self._counts[text] = n_tokens
        return n_tokens

    def reasoning_ids(self, steps: Iterable[str], context_ids: Sequence[int] = ()) -> list[int]:
        """Token ids of the steps, the marker included: a whole completion, but for the item.

        Without steps it is the marker alone, or the empty thought of a chat model.

        Args:
            steps: of the reasoning, one line each.
            context_ids: the prompt, which may have opened the thought already.

        Raises:
            ValueError: a step holds the marker or a control token.
        """
        steps = list(steps)
        render(steps)
        text, n_tags = "\n".join(steps), 0
        if self.thinks:
            tag, space = self._tail(context_ids)
            n_tags = int(tag is None)
            text = f"{THINK_START * n_tags}{'' if tag is not None and space else chr(10)}{text}\n"
        ids = self.tokenizer.encode(text, add_special_tokens=False) if text else []
        if self.marker_id in ids or self.eos_id in ids or ids.count(self.open_id) != n_tags:
            raise UsageError(f"a step of {steps!r} holds a control token; clean steps with Tokens.safe_text")
        return [*ids, self.marker_id]

    def step_ends(self, completion_ids: Sequence[int]) -> list[int]:
        """Where each step of a completion ends: the number of tokens up to its line break, or the reasoning's end.

        The steps are those of `anyo_rl.data.completion.split_steps`; a token belongs to the step that it ends.
        """
        cut = next((i for i, token in enumerate(completion_ids) if token in (self.marker_id, self.eos_id)), None)
        ids = list(completion_ids[:cut])
        ends: list[int] = []
        for end, token in enumerate(ids, 1):
            if self._may_break(token):
                # `|` stands for what comes next: lines before its own have ended.
                n_ended = len(split_steps(f"{self._text(ids[:end])}|")) - 1
                ends += [end] * (n_ended - len(ends))
        n_steps = len(split_steps(self._text(ids)))
        return ends + [len(ids)] * (n_steps - len(ends))

    def answered_now(self, context_ids: Sequence[int], step_ids: Sequence[int]) -> list[int]:
        """Context, steps and marker: where the teacher answers if its reasoning ends after these steps.

        The marker follows the last step's last word, as where a reasoning ends, and not its line break; a chat model
        that thinks has one line break there, and an empty thought where no step is written.
        """
        steps = self.without_break(step_ids)
        if self.thinks and not steps:
            return [*context_ids, *self.reasoning_ids([], context_ids)]
        if self.thinks and not self._text(steps[-1:]).endswith("\n"):
            steps += self.tokenizer.encode("\n", add_special_tokens=False)
        return [*context_ids, *steps, self.marker_id]

    @cached_property
    def break_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that hold a line break: where a step that is sampled by itself ends.

        A line break that is written byte by byte, as a part of a character, is none of them.
        """
        ids = [token for token in range(len(self.tokenizer)) if token not in (self.marker_id, self.eos_id)]
        pieces = [self._text([token]) for token in ids]
        return tuple(token for token, piece in zip(ids, pieces, strict=True) if len(f"|{piece}|".splitlines()) > 1)

    def opening_ids(self, context_ids: Sequence[int]) -> list[int]:
        """What a reasoning begins with before its first step: the tag of a chat model that thinks, else nothing."""
        if not self.thinks or self._tail(context_ids)[0] is not None:
            return []
        return [self.open_id or 0, *self.tokenizer.encode("\n", add_special_tokens=False)]

    def without_break(self, ids: Sequence[int]) -> list[int]:
        """Token ids of steps without the white space behind the last one, as far as it has tokens of its own.

        A `<think>` with nothing after it is no step either.
        """
        ids = list(ids)
        while ids and not self._text(ids[-1:]).strip():
            ids.pop()
        return ids

    def _may_break(self, token: int) -> bool:
        """Whether a token may end a line: it holds a line break, or is a part of a character."""
        known = self._breaks
        if token not in known:
            piece = self._text([token])
            known[token] = len(f"|{piece}|".splitlines()) > 1 or "\N{REPLACEMENT CHARACTER}" in piece
        return known[token]

    def item_ids(self, title: str) -> list[int]:
        """An item path: tok(marker + " " + title) minus the marker, then the end-of-sequence token.

        Chat models that think have two line breaks in place of the blank.

        Raises:
            ValueError: the title has no token, or the tokenizer merges text into the marker.
        """
        ids = self._behind_marker(f"{self._gap or ' '}{title}")
        if not title.strip() or {self.marker_id, self.eos_id, self.open_id} & set(ids):
            raise UsageError(f"title {title!r} is empty or holds a control token; clean titles with Tokens.safe_text")
        return [*ids, self.eos_id]

    def code_ids(self, codes: Sequence[str]) -> list[int]:
        """An item path of a semantic id: its codes, then the end-of-sequence token.

        Nothing stands between the marker and the first code, but for the line breaks of chat models that think: added
        tokens are never merged with their neighbours.

        Raises:
            ValueError: there is no code, or one is not an added token (see `add_codes`).
        """
        missing = [code for code in codes if code not in self._added]
        if missing or not codes:
            raise UsageError(
                f"{missing[0] if missing else 'an empty semantic id'!r} is no added token of the tokenizer: add the "
                f"codes of semantic ids to teacher and tokenizer first"
            )
        return [*self._behind_marker(self._gap), *(self._added[code] for code in codes), self.eos_id]

    @property
    def _gap(self) -> str:
        return "\n\n" if self.thinks else ""

    def _behind_marker(self, text: str) -> list[int]:
        """Token ids of a text right after the marker."""
        first, *ids = self.tokenizer.encode(f"{self._marker}{text}", add_special_tokens=False)
        if first != self.marker_id:
            raise UsageError(f"the tokenizer does not keep the marker apart before {text!r}")
        return ids

    def item_titles(self, paths: Iterable[Sequence[int]]) -> list[str]:
        """What item paths spell, white space folded: the inverse of `item_ids`, and of `code_ids`."""
        return [" ".join(self._text(path).split()) for path in paths]

    def _text(self, ids: Sequence[int]) -> str:
        shown = [token for token in ids if token != self.open_id]
        return self.tokenizer.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of completion ids as people see it: the marker as ` -> `, control tokens and `<think>` left out.

        Only the marker's token ends a reasoning: the characters `->` spelled out by other tokens are shown as `→`, so
        that `anyo_rl.data.completion.parse` agrees with the ids.
        """
        ids = list(ids)
        if self.marker_id not in ids:
            return self._text(ids).replace(MARKER, "→").strip()
        cut = ids.index(self.marker_id)
        # The marker's own text may be anything (`</think>`): it is left out of the item and shown as `->` once.
        answer = [token for token in ids[cut + 1 :] if token != self.marker_id]
        reasoning = self._text(ids[:cut]).replace(MARKER, "→").strip()
        item = self._text(answer).strip()
        return f"{reasoning} {MARKER} {item}".strip()
