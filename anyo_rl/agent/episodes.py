"""Episodes: an agent writes lines, its calls are answered, until it has written an answer or its turns are over.

Many episodes are written together, a line of each at a time. Tokens that the environment put in are marked, so that no
loss falls on them. An episode that has used its turns up, or has no room for a result, is made to answer: the marker
is put in for it. Whatever happens, it ends within its turns and tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from anyo_rl.agent.tools import Desk
from anyo_rl.sampling.protocol import LineSampler, Sampling
from anyo_rl.teacher.tokens import Tokens

Ending = Literal["answered", "no answer", "cut off"]


@dataclass(frozen=True)
class Limits:
    """How far an episode may go.

    Attributes:
        turns: most lines before the answer.
        line_tokens: most tokens of a line or an answer.
        tokens: most tokens of an episode, results included.
    """

    turns: int = 10
    line_tokens: int = 32
    tokens: int = 320


@dataclass
class Episode:
    """What was written and heard.

    Attributes:
        context_ids: the prompt.
        ids: all tokens behind it.
        mask: 1 for tokens of the agent's own, 0 for those that the environment put in.
        lines: each line, and whether it is a result.
        answer: what stands behind the marker; `None` where there is none.
        ending: how it ended; `None` while it goes on.
        n_calls: calls that were answered.
        n_failed: of these, calls of tools that failed.
    """

    context_ids: list[int]
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    lines: list[tuple[str, bool]] = field(default_factory=list)
    answer: str | None = None
    ending: Ending | None = None
    n_calls: int = 0
    n_failed: int = 0

    def add(self, ids: Sequence[int], *, own: bool) -> None:
        """Appends tokens, of the agent's own or the environment's."""
        self.ids += ids
        self.mask += [int(own)] * len(ids)


def play(
    sampler: LineSampler,
    tokens: Tokens,
    contexts_B: Sequence[Sequence[int]],
    desks_B: Sequence[Desk],
    sampling: Sampling,
    limits: Limits,
    keys_B: Sequence[str],
) -> list[Episode]:
    """Plays an episode for each prompt.

    Args:
        sampler: writes lines.
        tokens: the teacher's tokenizer and marker.
        contexts_B: token ids of the prompts.
        desks_B: where the calls of each are answered; one without tools answers none.
        sampling: temperature, nucleus and seed.
        limits: how far each may go.
        keys_B: what tells the draws of episodes apart.

    Returns:
        B episodes, all ended.
    """
    episodes = [Episode(list(context)) for context in contexts_B]
    turn = 0
    while going := [place for place, one in enumerate(episodes) if one.ending is None]:
        if turn >= limits.turns:
            for place in going:
                _make_answer(episodes[place], tokens)
        room = [limits.tokens - len(episodes[place].ids) for place in going]
        samples = sampler.sample_lines(
            [[*episodes[place].context_ids, *episodes[place].ids] for place in going],
            replace(sampling, n=1),
            [max(1, min(limits.line_tokens, each)) for each in room],
            [f"{keys_B[place]} {turn}" for place in going],
        )
        for place, sample in zip(going, samples, strict=True):
            episode, desk = episodes[place], desks_B[place]
            answers = tokens.marker_id in episode.ids
            episode.add(sample.token_ids, own=True)
            _go_on(episode, desk, tokens, limits, list(sample.token_ids), answers)
        turn += 1
    return episodes


def _go_on(episode: Episode, desk: Desk, tokens: Tokens, limits: Limits, written: list[int], answers: bool) -> None:
    """What follows from a line that was just written."""
    if answers:
        episode.answer = tokens.tokenizer.decode([one for one in written if one != tokens.eos_id]).strip()
        episode.ending = "answered"
        return
    if tokens.marker_id in written:
        before = tokens.tokenizer.decode(written[: written.index(tokens.marker_id)]).strip()
        episode.lines += [(before, False)] if before else []
        return
    line = tokens.tokenizer.decode(written).strip()
    if written[-1] == tokens.eos_id:
        episode.ending = "no answer"
        return
    if line:
        episode.lines.append((line, False))
    if len(episode.ids) >= limits.tokens:
        episode.ending = "cut off"
        return
    result = desk.answer(line)
    if result is None:
        return
    episode.n_calls, episode.n_failed = episode.n_calls + 1, episode.n_failed + result.failed
    heard = result_ids(result.text, tokens, fresh_line="\n" in tokens.tokenizer.decode(written[-1:]))
    if len(episode.ids) + len(heard) + limits.line_tokens > limits.tokens:
        _make_answer(episode, tokens)
        return
    episode.add(heard, own=False)
    episode.lines.append((result.text, True))


def _make_answer(episode: Episode, tokens: Tokens) -> None:
    """Puts the marker in, so that what is written next is the answer."""
    if tokens.marker_id not in episode.ids:
        episode.add([tokens.marker_id], own=False)


def result_ids(text: str, tokens: Tokens, *, fresh_line: bool = True) -> list[int]:
    """Token ids of a result, as a line of its own.

    Args:
        text: of the result.
        tokens: the teacher's tokenizer.
        fresh_line: whether the line before has its line break.
    """
    return list(tokens.tokenizer.encode(f"{'' if fresh_line else chr(10)}{text}\n", add_special_tokens=False))
