"""Text from data, made safe to stand in a prompt.

Titles and attributes come from strangers. `clean_text` is the one place where they are sanitised, at load time, so
that no title can end its line, close the list it stands in, write the marker that ends the reasoning, or imitate a
chat template's special token.
"""

import html
import re
import unicodedata

from anyo_rl.data.completion import MARKER

MAX_TITLE_CHARS = 300
MARKER_STAND_IN = "→"
ELLIPSIS = "…"

# Longer text is cut before anything else, so that a hostile title costs no time.
_MAX_RAW_CHARS = 4_000

_HTML_NAMES = (
    "a|abbr|b|big|blockquote|body|br|button|center|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|li|"
    "link|meta|ol|p|pre|script|small|span|strong|style|sub|sup|svg|table|tbody|td|th|thead|title|tr|tt|u|ul"
)
_CHAT_NAMES = (
    "s|bos|eos|pad|unk|mask|cls|sep|think|thinking|answer|history|chosen|system|user|assistant|tool|tools|tool_call|"
    "tool_response|start_of_turn|end_of_turn|start_of_image|end_of_text|endoftext|extra_id_\\d+|unused\\d+"
)
# Known tags only: "<3" or "<a_60>" is text, not markup.
_TAGS = re.compile(rf"</?(?:{_HTML_NAMES}|{_CHAT_NAMES})(?:\s[^<>]*)?/?>|<!--", re.IGNORECASE)
_SPECIAL_TOKENS = re.compile(
    # The fullwidth bars and the low block are those of DeepSeek's tokens.
    r"<[|\uff5c][^<>]{0,64}[|\uff5c]>|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|CLS|SEP|PAD|MASK|UNK|BOS|EOS)\]",
    re.IGNORECASE,
)
_TAG_LIKE = re.compile(r"<(?=[^\w<>]*[^\W\d])[^<>]*>|<(?=[^\w\s<>]*[^\W\d])")
_ANGLES = str.maketrans("<>", "‹›")
# ASCII without & < > [ and control characters: most titles have nothing else.
_PLAIN = re.compile(r"[ -%'-;=?-Z\\-~]*")
_WHITESPACE = re.compile(r"\s+")
# Joiners and variation selectors hold emoji together; every other invisible character goes.
_KEEP_INVISIBLE = frozenset("\u200c\u200d")
_STRIP = " \u200c\u200d"


def clean_text(text: str, max_chars: int | None = MAX_TITLE_CHARS) -> str:
    """Return `text` on one line, without markup, special tokens, control characters or the marker `->`.

    HTML entities are unescaped, known HTML tags and chat-template tokens removed, `->` becomes `→`, whitespace (line
    breaks too) is folded to single spaces, and invisible or direction-changing characters are removed; emoji stay.
    What is longer than `max_chars` is cut at a word boundary and ends with `…`. Cleaning twice gives the same as once.

    Args:
        text: any text; what lies after 4,000 characters is ignored.
        max_chars: the greatest length of the result, in characters, at least 1; None for no limit.
    """
    text = text[:_MAX_RAW_CHARS]
    clean = " ".join(text.split()) if _PLAIN.fullmatch(text) else _clean_rest(text)
    return clean if max_chars is None else truncate_text(clean, max_chars)


def _clean_rest(text: str) -> str:
    # Removing one token may join the halves of another, so go on until nothing changes; each pass but the last one
    # shortens the text or brings it nearer to its normal form.
    while True:
        before = text
        text = unicodedata.normalize("NFC", html.unescape(text))
        text = _WHITESPACE.sub(" ", text)
        text = "".join(filter(_is_visible, text)) if not text.isascii() or not text.isprintable() else text
        text = _SPECIAL_TOKENS.sub(" ", _TAGS.sub(" ", text))
        text = text.replace(MARKER, MARKER_STAND_IN)
        text = _WHITESPACE.sub(" ", text).strip(_STRIP)
        if text == before:
            return text


def truncate_text(text: str, max_chars: int) -> str:
    """Cut `text` at the last word boundary within `max_chars` characters, `…` included; short text stays as it is.

    A single word that is too long is cut inside.
    """
    if len(text) <= max_chars:
        return text
    head = text[: max_chars - 1]
    if text[max_chars - 1] != " " and " " in head:
        head = head[: head.rindex(" ")]
    return head.rstrip() + ELLIPSIS


def escape_tags(text: str) -> str:
    """Brackets of what looks like a tag become `‹` and `›`: nothing in it can open or close a part of a prompt.

    A tag is recognised by its structure, since prompts and their tags are the user's own: an angle bracket after
    which, but for signs and what can't be seen, a letter comes first. Where there are blanks it has to be closed: "<3"
    and "pens < pencils" are text. What was escaped stays as it is.

    >>> escape_tags("Mug </ history> <3")
    'Mug ‹/ history› <3'
    """
    return _TAG_LIKE.sub(lambda found: found[0].translate(_ANGLES), text)


def _is_visible(char: str) -> bool:
    return char in _KEEP_INVISIBLE or unicodedata.category(char) not in ("Cc", "Cf", "Cs")


def squeeze(text: str) -> str:
    """Lower case, and blanks as in `name: a, b`: a tokenizer may decode them otherwise, which makes no line false.

    >>> squeeze("  Head :tea  ,lamp ")
    'head: tea, lamp'
    """
    return re.sub(r"\s*([:,])\s*", r"\1 ", " ".join(text.lower().split())).strip()
