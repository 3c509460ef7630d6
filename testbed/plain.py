r"""Text that shows all it has: nothing in it moves a cursor, hides, reorders or begins a line of its own (pure).

What could is written as bash writes it in `$'...'`: `\x1b`, `\u202e`. Unprintable is what Unicode says it is
(`str.isprintable`: controls, format characters, separators but for the space, surrogates, unassigned), and what is
drawn as nothing: Default_Ignorable_Code_Point (Unicode Standard, 5.21) and the blank Braille pattern.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable
from shlex import quote

# Those of DerivedCoreProperties.txt that count as printable letters and marks.
_BLANK = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)


def shown(text: str, keep: str = "\n\t") -> str:
    """Return text of any lines with everything visible."""
    if text.isascii() and (text.isprintable() or text.translate(dict.fromkeys(map(ord, keep))).isprintable()):
        return text  # nearly all, in no time
    return "".join(c if c in keep or _visible(c) else _escaped(c) for c in text)


def line(text: str) -> str:
    """Return text as one line, whatever it has."""
    return shown(text, "")


def word(text: str) -> str:
    """Return a word as bash reads it, in one line; two words that differ never look the same."""
    if (text.isascii() and text.isprintable()) or all(map(_visible, text)):
        return quote(text)
    return "$'" + "".join(f"\\{c}" if c in "\\'" else c if _visible(c) else _escaped(c) for c in text) + "'"


def words(argv: Iterable[str]) -> str:
    """Return a command as bash reads it, in one line."""
    return " ".join(map(word, argv))


def stream() -> Callable[[bytes], bytes]:
    """Return a function that takes output piece by piece, b"" at its end, and returns each with everything visible."""
    decoder = getincrementaldecoder("utf-8")("surrogateescape")
    return lambda part: shown(decoder.decode(part, final=not part)).encode()


def _visible(character: str) -> bool:
    return character.isprintable() and character not in _BLANK


def _escaped(character: str) -> str:
    if character in "\n\t\r":
        return {"\n": r"\n", "\t": r"\t", "\r": r"\r"}[character]
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8 (PEP 383)
        number -= 0xDC00
        return f"\\x{number:02x}"
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
