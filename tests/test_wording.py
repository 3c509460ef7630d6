"""The documentation is in plain English: what was put right once does not come back.

Only prose is looked at: output of the program, and parts that are generated from it, are its own.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = [
    *(ROOT / f"{page}.md" for page in ("README", "CONTRIBUTING", "RELEASING", "SECURITY")),
    ROOT / "Makefile",
    *sorted(f for f in (ROOT / "docs").rglob("*") if f.suffix in (".md", ".yaml", ".py")),
    *sorted(ROOT.glob("topologies/*.yaml")),
    *sorted(ROOT.glob("experiments/*.yaml")),
]
_NOT_PROSE = re.compile(r"^```(?:console|text)\n.*?^```$|<!-- generated: [^\n]+ -->\n.*?<!-- end -->", re.M | re.S)
# Sentences that read as translated, each once in the documentation.
GONE = (
    "What your kernel has not",
    "labs go there by themselves",
    "A topology, and what it says",
    "that you leave out are planned",
    "says whether what you expected held",
    "There is no magic in a lab",
    "Something happens",
    "in mid-run",
    "asks its question",
    "whether a file is right",
    "decides by hand",
    "are words, and",
    "A key that is there twice",
    "another one can't join",
    "goes before",
    "tells its TCP at once",
    "commonest next hop",
    "that there is not",
    "What was not measured is not there",
    "are no losses",
    "the machine's and not the lab's",
    "Doubts do not change the verdict",
    "that came to its end",
    "Whoever installs testbed",
    "A path counts from",
    "what has several links and one address above them",
    "legacy ones on that link are alone",
    "tenths of a per cent",
    "one should know before trusting",
    "without a word",
    "a machine of a name",
    "some ten times slower",
    "is told on stderr",
    "has testbed's sources imported",
    "which is told",
    "As of ssh_config",
    "Build although",
)
# What gives such a sentence away, and phrases in which it is right. "There is no X" is idiomatic.
SIGNS = {
    r"(?<!there )(?<!There )\bis no\b(?! longer)": (),
    r"(?<!there )(?<!There )\bare no\b(?! longer)": (),
    r"\b(?:has|have|had) not\b(?! \w+(?:ed|en|n)\b)": (),
    r"\banew\b": (),
    r"\bthere is not\b": (),
    r"(?:^|[.;:] )(?:Who|Whoever)\b(?!.*\?)": (),
    r"\bare told\b|\bis told\b": ("(a station is told to join)",),  # a command to a program
    r"\bas of a\b": (),
    r"\bbut for\b": (),
    r"\bof its own accord\b": (),
    r"\bjudged?\b": (),
}


def prose(file: Path) -> str:
    """Return the text of a file in one line each paragraph, without what programs printed."""
    text = _NOT_PROSE.sub("", file.read_text())
    if file.suffix != ".md":
        text = re.sub(r"^ *#+ ?", "", text, flags=re.M)
    return re.sub(r"(?<=\S)\n *(?=[^\s|#-])", " ", text)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_no_sentence_that_was_put_right_comes_back(file: Path) -> None:
    text = prose(file)
    assert not [phrase for phrase in GONE if phrase in text]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_nothing_reads_as_translated(file: Path) -> None:
    text = prose(file)
    found = []
    for sign, right in SIGNS.items():
        for row in text.splitlines():
            kept = row
            for phrase in right:
                kept = kept.replace(phrase, "")
            found += [f"{m[0]}: ...{kept[max(0, m.start() - 40) : m.end() + 40]}" for m in re.finditer(sign, kept)]
    assert not found, "\n".join(found)
