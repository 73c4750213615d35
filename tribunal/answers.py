"""When are two answers the same? A canonical form for closed answers, one for each kind.

    usable(text)             is it an answer at all
    supposed, guess          the kind, where nobody has said it
    canonical(text, kind)    a key, or None: two answers agree only if both have the same key

False agreement is worse than none: it ends a deliberation early with a wrong answer, while a missed one costs a few
calls. So what is not plainly one closed answer has no key: two options, a range, a number within a sentence, a unit
that one answer has and the other has not. The same key always means the same value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from .json_answers import canonical_json
from .moves import Message
from .numbers import canonical_number
from .profile import Kind
from .prompts import defused, without_thoughts

LONGEST = 64_000
"""Longer answers have no canonical form: to look for one would cost more than it can save."""

MOST_REPEATED = 400

_BLANKS = re.compile(r"\s+")
_TAIL = 1200
_SHORT = 80

# -- is it an answer ------------------------------------------------------------------------------


def usable(text: str, most: int) -> str | None:
    """None if it is, else why it is not: "empty", "oversized", "garbage"."""
    if len(text) > most:
        return "oversized"
    seen = without_thoughts(text)
    if not defused(seen[:4000]).strip() and not seen[4000:].strip():
        return "empty"
    sample = seen[:4000]
    odd = sum(
        1
        for c in sample
        if c == "\ufffd" or (unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") and c not in "\n\r\t")
    )
    if odd * 5 > len(sample):
        return "garbage"
    if len(seen) > MOST_REPEATED and any(seen[n:] == seen[:-n] for n in range(1, 9)):
        return "garbage"  # a few characters over and over: a model that has lost itself
    return None


# -- which kind -----------------------------------------------------------------------------------

_OPTION = re.compile(r"^[ \t]{0,8}[\(\[]?([A-J])[\)\].:][ \t]{1,8}\S", re.MULTILINE)
_ASKS_NUMBER = re.compile(
    r"\bhow (?:many|much|old|far|long|tall|fast|heavy)\b|\bcalculate\b|\bcompute\b|\bevaluate\b|\bpercentage\b"
    r"|\bwhat (?:is|are) the (?:\w+ ){0,3}(?:number|sum|product|value|total|difference|remainder|area|volume)\b"
    r"|\b(?:probability|average) (?:of|that)\b"
    r"|\\boxed|####",
    re.IGNORECASE,
)
_ASKS_CODE = re.compile(
    r"```|\b(?:write|implement|fix|complete|refactor|debug)\b[^.?!]{0,80}"
    r"\b(?:function|code|program|script|class|method|query|sql|regex)\b",
    re.IGNORECASE,
)


_ARITHMETIC = re.compile(r"(?:what is |what's )?[-+*/^(). \d]+=?[ ?]*", re.IGNORECASE)


def asked_text(messages: Sequence[Message]) -> str:
    """The text of the last message of the user."""
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            if isinstance(content, list):
                texts = [part.get("text") for part in content if isinstance(part, dict)]
                return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def options(question: str) -> frozenset[str]:
    """The letters of a multiple-choice question; empty if it is none: they must run from A without a gap."""
    letters = frozenset(_OPTION.findall(question[-20_000:]))
    expected = frozenset("ABCDEFGHIJ"[: len(letters)])
    return letters if len(letters) >= 2 and letters == expected else frozenset()


def supposed(messages: Sequence[Message], wants_json: bool = False) -> Kind:
    """The kind that the question's shape speaks for."""
    question = asked_text(messages)[-20_000:]
    if wants_json:
        return Kind.JSON
    if options(question):
        return Kind.CHOICE
    if _ASKS_CODE.search(question):
        return Kind.CODE
    if _ASKS_NUMBER.search(question) or (len(question) <= _SHORT and _ARITHMETIC.fullmatch(question.strip())):
        return Kind.NUMBER
    return Kind.TEXT


def guess(kind: Kind, keys: Sequence[str | None]) -> Kind:
    """The supposed kind if more than half of the answers have a key of it, else free text."""
    bearing = sum(key is not None for key in keys)
    return kind if not keys or 2 * bearing > len(keys) else Kind.TEXT


# -- the canonical form ---------------------------------------------------------------------------


def canonical(text: str, kind: Kind, messages: Sequence[Message] = ()) -> str | None:
    """The key of an answer, `KIND:...`; None if it has none. AUTO has none: somebody must have supposed a kind."""
    text = without_thoughts(text)
    if len(text) > LONGEST:
        return None
    found: str | None = None
    match kind:
        case Kind.CHOICE:
            found = _choice(text, options(asked_text(messages)))
        case Kind.NUMBER:
            found = _stated_number(text)
        case Kind.JSON:
            found = canonical_json(_unfenced(text) or text)
        case Kind.CODE:
            found = _code(text)
        case Kind.TEXT:
            found = _plain(text)
    return f"{kind.value}:{found}" if found else None


# What looks for a statement looks at the end of the text, with runs of blanks made one: patterns with several optional
# blanks would otherwise take time with a power of a run's length, and members choose what they answer.


def _end(text: str) -> str:
    return _BLANKS.sub(lambda run: "\n" if "\n" in run[0] else " ", text[-_TAIL:])


def _lines(text: str) -> list[str]:
    """Lines with something in them, of the text's end if it is long."""
    return [line for line in (_BLANKS.sub(" ", line).strip() for line in text[-LONGEST:].split("\n")) if line]


def _boxed(text: str) -> list[str]:
    """The contents of every \\boxed{...} near the end, braces balanced."""
    text = text[-_TAIL:]
    found = []
    at = 0
    while (at := text.find("\\boxed{", at)) >= 0:
        start = at + len("\\boxed{")
        depth = 1
        end = start
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if not depth:
            found.append(text[start : end - 1].strip())
        at = start
    return found


# -- choice -----------------------------------------------------------------

_LETTER = r"(?:\\text(?:bf)?\{\s*)?[\*_`\"'\u201c]{0,3}(?:[\(\[]\s*([A-Ja-j])\s*[\)\]]|([A-J]))[\*_`\"'\u201d]{0,3}\}?"
_NO_WORD = r"(?![A-Za-z0-9'\u2019\-])"
_NO_OTHER = (
    r"(?!\s*(?:[,/&+]|and\b|or\b|nor\b)\s*(?:option\s+|choice\s+|answer\s+)?"
    r"[\(\[\*]{0,3}[A-Ja-j][\)\]\*]{0,3}(?![A-Za-z]))"
)
_ENDS = _NO_WORD + _NO_OTHER + r"(?=\s*(?:$|[).,:;!*\]}\u2014\u2013]|because\b|since\b|as\b|which\b|\())"
_SAID = re.compile(
    r"\b(?:answer|option|choice)s?(?:\s+(?:is|would be|should be|must be|choice|option))?\s*(?:is\s*)?[:=]?\s*"
    r"(?:option\s+|choice\s+)?" + _LETTER + _ENDS,
    re.IGNORECASE | re.MULTILINE,
)
_ALONE = re.compile(_LETTER + r"\s*[.):]?\s*\Z")
_OPENS = re.compile(r"\A" + r"(?:[\*_]{0,3}(?:[\(\[]([A-J])[\)\]]|([A-J])[\).:])[\*_]{0,3})(?=\s|\Z)")


def _letter(match: re.Match[str]) -> str | None:
    """Upper case; a lower-case letter only in brackets: "a" is a word."""
    bare = match[2]
    if bare is not None and not bare.isupper():
        return None
    return str(match[1] or bare).upper()


def _choice(text: str, offered: frozenset[str]) -> str | None:
    found = _choices(text)
    if len(found) != 1:
        return None
    (letter,) = found
    return letter if not offered or letter in offered else None


def _choices(text: str) -> set[str]:
    """The letters that are said to be the answer, by the strongest way of saying it that the text has."""
    boxed = _boxed(text)
    if boxed:
        alone = [_ALONE.match(content) for content in boxed[-1:]]
        return {letter for match in alone if match and (letter := _letter(match))} or {"", "?"}
    lines = _lines(text)
    if not lines:
        return set()
    last = lines[-1]
    said = {letter for match in _SAID.finditer(last[-_TAIL:]) if (letter := _letter(match))}
    if not said:
        said = {letter for match in _SAID.finditer(_end(text)) if (letter := _letter(match))}
    if said:
        return said
    match = _ALONE.match(last)
    if match and (letter := _letter(match)):
        return {letter}
    if len(lines) == 1 and (match := _OPENS.match(last)):
        # "B) Paris": an option with its text, and no other option beside it
        others = re.findall(r"(?<![A-Za-z])([A-J])[\)\]]", last)
        return {str(match[1] or match[2]), *others}
    return set()


# -- number -----------------------------------------------------------------

_NUMBER_SAID = re.compile(
    r"(?:\banswer\s?(?:is|:|=)|\bresult\s?(?:is|:|=)|####)\s?:?\s?(?:\*\*\s?)?(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)


def _stated_number(text: str) -> str | None:
    boxed = _boxed(text)
    if boxed:
        keys = {canonical_number(content) for content in boxed[-1:]}
    else:
        lines = _lines(text)
        whole = canonical_number(lines[0]) if len(lines) == 1 else None
        if whole:
            return whole
        said = [match[1] for match in _NUMBER_SAID.finditer(_end(text))]
        if said:
            keys = {canonical_number(_sentence(content)) for content in said}
        elif lines:
            keys = {canonical_number(lines[-1])}
        else:
            return None
    return keys.pop() if len(keys) == 1 else None


def _sentence(text: str) -> str:
    """Without the end of its sentence. Several sentences are left whole, and so are no number."""
    return text.rstrip(" .!*")


# -- code and text ----------------------------------------------------------

_FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})([^`]*)")


def _unfenced(text: str) -> str | None:
    """What is inside the one code block of the text; None if there is none, several, or one without an end."""
    blocks: list[str] = []
    inside: list[str] = []
    fence = ""
    for line in text.replace("\r\n", "\n").split("\n"):
        match = _FENCE.fullmatch(line)
        if not fence and match:
            fence, inside = match[1], []
        elif fence and match and match[1].startswith(fence) and not match[2].strip():
            blocks.append("\n".join(inside))
            fence = ""
        elif fence:
            inside.append(line)
    return blocks[0] if len(blocks) == 1 and not fence else None


def _code(text: str) -> str:
    """The one code block, or a text that is all code: line ends and blank lines around it do not count, all else
    does."""
    if "```" in text or "~~~" in text:
        inside = _unfenced(text)
        if inside is None:
            return ""
        text = inside
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\n").rstrip()


def _plain(text: str) -> str:
    """Unicode in one form, no blanks at line ends or around it; a short one without its full stop and emphasis."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip()
    if len(text) <= _SHORT and "\n" not in text:
        before = None
        while before != text:
            before = text
            for mark in ("**", "__", "`", '"'):
                if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
                    inner = text[len(mark) : -len(mark)]
                    text = inner.strip() if mark not in inner else text
            if text.endswith(".") and not text.endswith("..") and text.count(".") == 1:
                text = text[:-1].rstrip()
    return text


def same(a: str | None, b: str | None) -> bool:
    """Two keys, or their lack: None agrees with nothing, not even with None."""
    return a is not None and a == b
