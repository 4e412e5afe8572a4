"""What an agent may call, and what it hears back: one bounded line, in which no text from data can act as anything.

A call is a line of the agent's own, `name: argument` or `name`. Whatever a tool returns, however long, empty, or
full of line breaks, and whether it raises or hangs, becomes one line that begins with `= `. Control tokens, markers,
names of tools with their colon, and the signs that part titles are taken out of it. Only lines that the agent wrote
are read as calls, so this is a second wall, for the agent's eyes.
"""

import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Tool = Callable[[str], object]  # takes what stands behind the colon, gives a text

RESULT = "= "  # how a result begins
BETWEEN = " | "  # titles of an answer
TITLE_CHARS = 60
CALL = re.compile(r"\s*(\w+)\s*(?::(.*))?$", re.DOTALL)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What the environment says to a call.

    Attributes:
        text: one line, with `= ` and without its line break.
        failed: whether the tool raised, took too long, or said nothing; or there is no such tool.
    """

    text: str
    failed: bool = False


@dataclass(frozen=True)
class Desk:
    """Where the calls of one episode are answered.

    Attributes:
        tools: by name.
        clean: takes what the teacher's tokenizer would read as a control token out of a text (`Tokens.safe_text`).
        most_chars: longest result; the rest is cut off.
        timeout_s: how long a tool may take; one that hangs is given up, and its thread left behind. `None` calls it
            without a limit, in this thread.
    """

    tools: Mapping[str, Tool]
    clean: Callable[[str], str] = str
    most_chars: int = 300
    timeout_s: float | None = None

    def answer(self, line: str) -> Result | None:
        """What is said to a line that the agent wrote; `None` where it is no call but a thought of its own.

        Args:
            line: without its line break.
        """
        found = CALL.match(line) if self.tools else None
        if found is None or (found[2] is None and found[1] not in self.tools):
            return None
        name, argument = found[1], (found[2] or "").strip()
        if name not in self.tools:
            return Result(self._line(f"no tool {name}, there are {', '.join(self.tools) or 'none'}"), failed=True)
        try:
            said = self._called(self.tools[name], argument)
        except TimeoutError:
            return Result(self._line(f"{name} took too long"), failed=True)
        except Exception as error:  # whatever a tool raises, the episode goes on
            logger.warning("tool %s failed: %r", name, error)
            return Result(self._line(f"{name} failed"), failed=True)
        text = self._line(said if isinstance(said, str) else "")
        return Result(text, failed=False) if text != RESULT else Result(self._line("nothing"), failed=True)

    def _called(self, tool: Tool, argument: str) -> object:
        if self.timeout_s is None:
            return tool(argument)
        said: list[object] = []
        raised: list[BaseException] = []

        def call() -> None:
            try:
                said.append(tool(argument))
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=call, daemon=True, name="tool")
        thread.start()
        thread.join(self.timeout_s)
        if raised:
            raise RuntimeError(repr(raised[0]))
        if not said:
            raise TimeoutError
        return said[0]

    def _line(self, text: str) -> str:
        text = one_line(text[: 4 * self.most_chars], self.clean)  # first of all: a tool may say megabytes
        return RESULT + defused(text, self.tools)[: self.most_chars].strip()


def one_line(text: str, clean: Callable[[str], str] = str) -> str:
    """A text without control characters, line breaks and control tokens."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(clean(text).split())


def defused(text: str, names: Sequence[str] | Mapping[str, object]) -> str:
    """A text in which no name of a tool stands before a colon.

    >>> defused("Search : all; a plan:b", ("search", "plan"))
    'Search all; a plan b'
    """
    if not names:
        return text
    pattern = rf"\b({'|'.join(map(re.escape, names))})\s*:+\s*"
    return re.sub(pattern, r"\1 ", text, flags=re.IGNORECASE).strip()


@dataclass(frozen=True)
class Names:
    """Titles as agents see and write them: each on one line, harmless, and an item's own.

    Attributes:
        shown: item id to its name.
        ids: the other way round, in lower case.
    """

    shown: Mapping[str, str]
    ids: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, titles: Mapping[str, str], tool_names: Sequence[str], clean: Callable[[str], str] = str) -> "Names":
        """Makes the names.

        Args:
            titles: item id to title, as the data have it; titles may collide, be empty, or try to act as a call.
            tool_names: of the tools.
            clean: see `Desk`.
        """
        shown: dict[str, str] = {}
        ids: dict[str, str] = {}
        for item_id, title in titles.items():
            text = one_line(title[: 4 * TITLE_CHARS], clean)
            # What parts titles in answers and results, and what begins a result, is no part of a title.
            text = " ".join(re.sub(r"[|;=$*]", " ", defused(text, tool_names)).split())[:TITLE_CHARS].strip()
            base = name = text or "untitled"
            number = 1
            while name.lower() in ids:
                number += 1
                name = f"{base} {number}"
            shown[item_id] = name
            ids[name.lower()] = item_id
        return cls(shown, ids)

    def find(self, name: str) -> str | None:
        """The item of a name, as an agent wrote it; `None` where there is none."""
        return self.ids.get(" ".join(name.split()).lower())

    def split(self, answer: str) -> list[str | None]:
        """The items of an answer, whose names are parted by ` | `; `None` for what is no item's name."""
        parts = [part.strip() for part in answer.split(BETWEEN.strip())]
        return [self.find(part) for part in parts if part]
