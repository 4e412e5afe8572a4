"""Which answers of an LLM are rationales: pure functions, the first reason that applies is the one that counts.

`judge` gives the reasons in this order:

    truncated    the server says that the answer was cut off (`finish_reason` is `length`), or a thought never closes
    unparsed     no marker, no step before it, or no item after it
    wrong_item   the title after the marker names no item, or others than the target
    leak         a step names the target (`names_target`)
    copy         a run of words stands in the prompt (`copies`)
    short, long  fewer or more steps or words than the settings allow

`duplicate` is known only beside the other answers (`judge_all`): the same steps, words alone, as one kept before.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from anyo_rl.data.completion import parse
from anyo_rl.data.schema import DataError
from anyo_rl.data.text import clean_text
from anyo_rl.llm.journal import Answer
from anyo_rl.llm.thoughts import after_thoughts
from anyo_rl.reasoning.rationales.titles import Titles

REASONS = ("truncated", "unparsed", "wrong_item", "leak", "copy", "short", "long", "duplicate")
COUNTS = ("kept", *REASONS, "failed", "left")

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # written without blanks: each character is a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_BULLET = re.compile(r"^(?:[-*•–]+|#+|\(?\d{1,2}[.):]|(?:step|line)\s+\d{1,2}\s*[.:)-])\s+", re.IGNORECASE)
_LAST_PART = re.compile(r"\s*[(\[][^()\[\]]*[)\]]\s*$")  # a year or a size: "Heat (1995)"
_ARTICLE = re.compile(r"^(.+), (the|a|an|le|la|les|der|die|das|el|il)$", re.IGNORECASE)
_QUOTES = "\"'`“”‘’«»*_"
_ENDS = ".!?:;…"

Words = tuple[str, ...]


@dataclass
class FilterArguments:
    """Which answers are kept. They can be changed between two starts of a run: nothing is asked again for it."""

    fewest_steps: int = field(default=2, metadata={"help": "Fewest steps of a rationale.", "free": True})
    most_steps: int = field(default=8, metadata={"help": "Most steps of a rationale.", "free": True})
    fewest_words: int = field(default=8, metadata={"help": "Fewest words of all steps together.", "free": True})
    most_words: int = field(
        default=100,
        metadata={
            "help": "Most words of all steps together; max_reasoning_tokens of the teacher has to hold them.",
            "free": True,
        },
    )
    leak_words: int = field(
        default=5,
        metadata={
            "help": "So many words in a row of the target's title are a leak as well, unless another title in the "
            "prompt has them; 0 looks for the whole title alone.",
            "free": True,
        },
    )
    copied_words: int = field(
        default=8,
        metadata={
            "help": "So many words in a row of the prompt, not all of one title, are copied; 0 allows it.",
            "free": True,
        },
    )

    def __post_init__(self) -> None:
        """Refuses settings that no answer or every answer passes.

        Raises:
            DataError: a setting is out of its range.
        """
        for low, high in (("fewest_steps", "most_steps"), ("fewest_words", "most_words")):
            if not 1 <= getattr(self, low) <= getattr(self, high):
                raise DataError(
                    f"{low} is {getattr(self, low)} and {high} {getattr(self, high)}: expected 1 <= {low} <= {high}"
                )
        for name in ("leak_words", "copied_words"):
            if getattr(self, name) < 0:
                raise DataError(f"{name} is {getattr(self, name)}: expected 0 or more")
        if self.leak_words == 1:
            raise DataError("leak_words is 1: every word of the target's title would be a leak; expected 0, or 2 up")


@dataclass(frozen=True)
class Shown:
    """What an answer is judged by.

    Attributes:
        target_id: the item chosen next.
        target: its title.
        others: the other titles in the prompt: history, candidates.
        prompt: the prompt's text, system part included.
    """

    target_id: str
    target: str
    others: tuple[str, ...]
    prompt: str


@dataclass(frozen=True)
class Verdict:
    """What an answer came to.

    Attributes:
        steps: its steps, clean lines without bullets and numbers.
        item_id: the item it names: the target where the title is the target's among others'; `None` for no item.
        item: the title as it was written.
        reason: why it is not kept; `None` where it is.
    """

    steps: tuple[str, ...]
    item_id: str | None
    item: str | None
    reason: str | None


def judge(text: str, finish_reason: str | None, shown: Shown, titles: Titles, args: FilterArguments) -> Verdict:
    """Judges one answer by itself.

    Args:
        text: what the server wrote; thoughts are passed over (`anyo_rl.llm.thoughts`).
        finish_reason: as the server says it.
        shown: the example as the server saw it.
        titles: of the catalog.
        args: the settings.
    """
    said = after_thoughts(text, finish_reason)
    parsed = parse(said.text)
    steps = clean_steps(parsed.steps)
    named = titles.find(parsed.item)
    item_id = shown.target_id if shown.target_id in named else named[0] if named else None
    n_words = sum(len(words(step)) for step in steps)
    reason = None
    if not said.is_whole:
        reason = "truncated"
    elif not parsed.marked or not steps or not parsed.item:
        reason = "unparsed"
    elif item_id != shown.target_id:
        reason = "wrong_item"
    elif names_target(steps, shown.target, shown.others, args.leak_words):
        reason = "leak"
    elif copies(steps, shown.prompt, (shown.target, *shown.others), args.copied_words):
        reason = "copy"
    elif len(steps) < args.fewest_steps or n_words < args.fewest_words:
        reason = "short"
    elif len(steps) > args.most_steps or n_words > args.most_words:
        reason = "long"
    return Verdict(steps, item_id, parsed.item, reason)


def judge_all(
    shown: Sequence[Shown], answers: Sequence[Answer | None], titles: Titles, args: FilterArguments
) -> list[Verdict | None]:
    """What each answer came to, `None` where there is none; the first of those with the same steps is the one kept."""
    verdicts: list[Verdict | None] = []
    before: set[tuple[tuple[str, ...], ...]] = set()
    for one, answer in zip(shown, answers, strict=True):
        verdict = judge(answer.text, answer.finish_reason, one, titles, args) if answer is not None else None
        if verdict is not None and verdict.reason is None:
            steps = normal_steps(verdict.steps)
            if steps in before:
                verdict = Verdict(verdict.steps, verdict.item_id, verdict.item, "duplicate")
            before.add(steps)
        verdicts.append(verdict)
    return verdicts


def count(verdicts: Sequence[Verdict | None], n_failed: int) -> dict[str, int]:
    """How many were kept, rejected by each filter, failed or left: they sum to the number of requests."""
    found = Counter("left" if verdict is None else verdict.reason or "kept" for verdict in verdicts)
    found["failed"] = n_failed
    found["left"] -= n_failed
    return {name: found[name] for name in COUNTS}


def clean_steps(steps: Iterable[str]) -> tuple[str, ...]:
    """Steps as clean lines, without bullets, numbers and emphasis around them; lines without any word are left out.

    >>> clean_steps(["1. likes tea", "- **Step 2:** wants a mug", "```"])
    ('likes tea', 'wants a mug')
    """
    cleaned = []
    for step in steps:
        line = clean_text(step.replace("**", ""), max_chars=None)
        while (shorter := _BULLET.sub("", line)) != line:
            line = shorter
        if words(line):
            cleaned.append(line.strip())
    return tuple(cleaned)


def words(text: str) -> Words:
    """The words of a text, case folded, without punctuation.

    >>> words("The Cook's MUG, 12-Count")
    ('the', 'cook', 's', 'mug', '12', 'count')
    """
    return tuple(word for word, _, _ in _spans(text))


def normal_steps(steps: Sequence[str]) -> tuple[Words, ...]:
    """Steps as words alone: two rationales for which these are the same are duplicates."""
    return tuple(words(step) for step in steps)


def names_target(steps: Sequence[str], target: str, others: Sequence[str], leak_words: int) -> bool:
    """Whether a step names the target.

    Titles are compared by words, case and punctuation folded. A title has its whole name, the one without what stands
    in brackets at its end ("Heat" for "Heat (1995)"), and the one with its article in front ("The Godfather" for
    "Godfather, The"). What stands inside a longer title that the prompt shows is that title: "Alien 3" does not name
    "Alien". A name of one word may be any word, so it counts in quotes, or written as in the title, and then not where
    a sentence begins if it has a capital letter: "It seems" does not name "It (1990)".

    Args:
        steps: the steps.
        target: the target's title.
        others: the other titles in the prompt. The target may be among them, as an item chosen before: to name it is
            a leak all the same.
        leak_words: so many words of the title in a row count as well, unless one of the others has them; 0: none do.
    """
    names = _names(target)
    others_words = {found for title in others for name in _names(title) if (found := words(name))}
    runs = _runs(words(target), leak_words) - {run for other in others_words for run in _runs(other, leak_words)}
    for step in steps:
        spans = _spans(step)
        step_words = tuple(word for word, _, _ in spans)
        if runs & _runs(step_words, leak_words):
            return True
        for name in names:
            name_words = words(name)
            longer = [other for other in others_words if len(other) > len(name_words) and _places(name_words, other)]
            covered = {i for other in longer for at in _places(other, step_words) for i in range(at, at + len(other))}
            for at in _places(name_words, step_words):
                inside = all(i in covered for i in range(at, at + len(name_words)))
                if not inside and (len(name_words) > 1 or _is_named(name, step, *spans[at][1:])):
                    return True
    return False


def copies(steps: Sequence[str], prompt: str, titles: Iterable[str], copied_words: int) -> bool:
    """Whether the steps hold a run of words of the prompt, over the ends of lines as well; titles may be mentioned.

    Args:
        steps: the steps.
        prompt: the prompt's text.
        titles: those in the prompt: a run that lies within one of them is a mention, however long.
        copied_words: how long a run counts; 0: none does.
    """
    written = _runs(words(" ".join(steps)), copied_words) & _runs(words(prompt), copied_words)
    return bool(written - {run for title in titles for run in _runs(words(title), copied_words)})


def _spans(text: str) -> list[tuple[str, int, int]]:
    """Words, case folded, and where each begins and ends in the text."""
    return [(found.group().casefold(), found.start(), found.end()) for found in _WORD.finditer(_normal(text))]


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _runs(found: Words, n: int) -> set[Words]:
    """All runs of n words; none for n = 0."""
    return {found[at : at + n] for at in range(len(found) - n + 1)} if n else set()


def _places(part: Words, whole: Words) -> list[int]:
    return [at for at in range(len(whole) - len(part) + 1) if whole[at : at + len(part)] == part] if part else []


def _names(title: str) -> list[str]:
    short = _LAST_PART.sub("", title)
    turned = [f"{found.group(2)} {found.group(1)}" for name in (title, short) if (found := _ARTICLE.match(name))]
    return [name for name in dict.fromkeys([title, short, *turned]) if words(name)]


def _is_named(name: str, step: str, start: int, end: int) -> bool:
    """Whether one word of a step is meant as a title; see `names_target`."""
    step = _normal(step)
    before, after = step[:start], step[end:].lstrip(".,!?")  # "Heat," has its comma inside the quotes
    if before and before[-1] in _QUOTES and after and after[0] in _QUOTES:
        return True
    (found,) = _WORD.findall(_normal(name))
    begins = not before.strip() or before.rstrip()[-1] in _ENDS
    return step[start:end] == found and not (begins and found[0].isupper())
