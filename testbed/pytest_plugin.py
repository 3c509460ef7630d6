"""The pytest plugin: the fixture `lab`, and the mark `testbed_feature` (docs/pytest.md).

Labs are made by the command line, so that here, a guest and a machine that ssh reaches are the same to a test. What
this module imports, every pytest of this Python pays for: the rest is imported by the test that needs it.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NoReturn, Protocol

import pytest

from testbed.cli.called import (
    call,
    guests,
    is_up,
    leashed,
    line_of,
    options,
    rows_of,
    tidily,
    unique_name,
    words_of,
)
from testbed.errors import BugError, InputError, LabError, TestbedError

MARK = "testbed_feature(*names, machine='here'): skip where the machine lacks a feature (see `testbed doctor`)"
_WARNING = re.compile(r".*:\d+:\d+: warning: .* \[[a-z-]+\]")  # of a file, as the command line says it
_ENDED = (0, 1, 2, 3, 4)  # exit statuses of a run that tell of the lab, and not of testbed or of a signal

OURS = ("auto", "here", "microvm")  # machines that nobody has to make known


class FileWarning(UserWarning):
    """A file works, and does not do what its words say (see `testbed check`)."""


Findings = Mapping[str, Mapping[str, Any]]  # what `testbed doctor --json` says, by name of feature
Tell = Callable[[str, str], None]  # title, text


@dataclass(frozen=True, slots=True)
class Case:
    """One run of an experiment: its results folder, and what is there of verdict and metrics.

    A case that could not be run to its end has the verdict `error`; without a folder it has no metrics.
    """

    folder: Path | None
    verdict: str  # passed, failed, error, no checks
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Run:
    """What `testbed run` of a file came to; an experiment with a matrix has several cases."""

    status: int  # 0, 1: a check failed, 3: a workload, a step or a whole case failed, 4: a case lacks a feature
    cases: tuple[Case, ...]

    @property
    def verdict(self) -> str:
        """Return the worst verdict of all cases."""
        return min((c.verdict for c in self.cases), key=("error", "failed", "passed", "no checks").index)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Return the metrics of the only case."""
        return self._only().metrics

    @property
    def folder(self) -> Path:
        """Return the results folder of the only case."""
        if (folder := self._only().folder) is None:
            raise InputError("the case has no results folder")
        return folder

    def _only(self) -> Case:
        if len(self.cases) != 1:
            raise InputError(f"the file has {len(self.cases)} cases: take those of `cases`, one by one")
        return self.cases[0]


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab that is up until its test ends."""

    name: str
    machine: str  # here, microvm, or a machine that ssh reaches
    nodes: tuple[str, ...]
    _file: Path = field(repr=False)
    _sets: tuple[str, ...] = field(repr=False)
    _results: Path = field(repr=False)
    _find: Callable[[str | Path], Path] = field(repr=False)
    _tell: Tell = field(repr=False)
    _record: Tell = field(repr=False)
    _runs: list[Run] = field(repr=False, default_factory=list)

    def exec(
        self,
        node: str,
        argv: Sequence[str],
        *,
        input: bytes = b"",  # noqa: A002 (subprocess's name for it)
        timeout: float = 60,
    ) -> CompletedProcess[str]:
        """Run a command in a node to its end; both outputs are captured as text."""
        __tracebackhide__ = True
        if node not in self.nodes:
            raise InputError(f"lab {self.name}: there is no node {node}{_close(node, self.nodes)}")
        done = call(("exec", self._called, node, "--", *argv), input, timeout)
        return CompletedProcess(tuple(argv), done.returncode, done.stdout, done.stderr)

    def run(self, file: str | Path | None = None, sets: Sequence[str] = ()) -> Run:
        """Run an experiment, or the lab's own file, in a lab of its own on the same machine; return what came of it.

        A check that failed is not an error here; a lab that could not be made is one.
        """
        __tracebackhide__ = True
        chosen, given = (self._file, (*self._sets, *sets)) if file is None else (self._find(file), tuple(sets))
        name = unique_name("run")
        words = ("run", str(chosen), "--json", "--name", name, "--machine", self.machine, *options(given))
        done = tidily((*words, "--results", str(self._results)), name)
        _warn(done)
        cases = json.loads(done.stdout) if done.stdout and done.returncode in _ENDED else []
        self._tell(f"run {chosen.name}", "\n".join([*rows_of(done), *(row for c in cases for row in _missed(c))]))
        if all(case["error"] is not None for case in cases):
            _refused(done, self.machine, chosen, given)
        for case in cases:
            for missed in _missed(case):  # pytest's own XML has the properties of a test, but no sections
                self._record("testbed", f"{chosen.name} {case['case']}".strip() + f": {' '.join(missed.split())}")
        self._runs.append(Run(done.returncode, tuple(map(_case, cases))))
        return self._runs[-1]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Return the metrics of the last run."""
        if not self._runs:
            raise InputError(f"lab {self.name}: there are no metrics yet: `lab.run()` measures them")
        return self._runs[-1].metrics

    def down(self) -> None:
        """Take the lab down before its test ends; once is enough."""
        __tracebackhide__ = True
        if self.machine in OURS and not is_up(self.name):
            return
        done = call(("down", self._called))
        if done.returncode and (self.machine not in OURS or is_up(self.name)):
            self._tell(f"down {self.name}", "\n".join(rows_of(done)))
            raise LabError(words_of(done))

    @property
    def _called(self) -> str:
        return self.name if self.machine in OURS else f"{self.name}@{self.machine}"


class Labs(Protocol):
    """The type of the fixture `lab`."""

    def __call__(
        self, file: str | Path, machine: str = "auto", sets: Sequence[str] = (), name: str | None = None
    ) -> Lab:
        """Bring a lab up."""


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Labs]:
    """Yield a function that brings a lab up; what it brought up is taken down when the test ends.

    A path counts from the test's file, then from the root directory. Skips where no machine offers what is required.
    """
    find = partial(_found, folders=(request.path.parent, request.config.rootpath))
    ending = ExitStack()

    def tell(title: str, text: str) -> None:
        request.node.add_report_section("call", f"testbed {title}", text)

    def record(name: str, value: str) -> None:
        request.node.user_properties.append((name, value))

    def up(file: str | Path, machine: str = "auto", sets: Sequence[str] = (), name: str | None = None) -> Lab:
        __tracebackhide__ = True
        path, unique = find(file), unique_name(name or "pytest")
        ending.enter_context(leashed(unique if machine in OURS else f"{unique}@{machine}"))
        words = ("up", str(path), "--json", "--name", unique, "--machine", machine, *options(sets))
        done = tidily(words, unique)
        tell(f"up {path.name}", "\n".join(rows_of(done)))
        if done.returncode:
            _refused(done, machine, path, sets)
        place = machine if machine != "auto" else "microvm" if unique in guests() else "here"
        nodes = tuple(json.loads(done.stdout)["nodes"])
        made = Lab(unique, place, nodes, path, tuple(sets), tmp_path / "results", find, tell, record)
        ending.callback(made.down)
        _warn(done)
        return made

    with ending:
        yield up


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", MARK)
    config.stash[_FINDINGS] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose machine lacks what its marks name, before its fixtures begin."""
    __tracebackhide__ = True
    try:
        for mark in item.iter_markers("testbed_feature"):
            _check(mark.args, mark.kwargs.get("machine", "here"), item.config.stash[_FINDINGS])
    except pytest.skip.Exception as e:
        raise pytest.skip.Exception(str(e.msg), _use_item_location=True) from e  # as pytest's own marks do


def _check(names: Sequence[str], machine: str, findings: dict[str, Findings]) -> None:
    """Skip or fail when a machine lacks one of some features."""
    __tracebackhide__ = True
    _known(names)
    lacking = _lacking(names, machine, findings) if machine != "microvm" else []
    if machine == "microvm" or (lacking and machine == "auto"):
        _guest()
    elif lacking:
        rows = [f"feature {f['feature']}: {f['known']}; {f['get']}" for f in lacking]
        _leave("; ".join(rows), {f["feature"] for f in lacking})


def _lacking(names: Sequence[str], machine: str, findings: dict[str, Findings]) -> list[Mapping[str, Any]]:
    """Return what a machine says of the features that it lacks; it is asked once."""
    __tracebackhide__ = True
    if machine not in findings:
        done = call(("doctor", "--json", "--machine", machine))
        if not done.stdout and done.returncode != 2 and machine not in OURS:
            _leave(f"machine {machine}: {line_of(done)}", {machine})
        if not done.stdout:
            raise {2: InputError, 70: BugError}.get(done.returncode, LabError)(words_of(done))
        findings[machine] = {f["feature"]: f for f in json.loads(done.stdout)["features"]}
    return [findings[machine][name] for name in names if not findings[machine][name]["present"]]


def _known(names: Iterable[str]) -> None:
    """Fail when a name is not that of a feature."""
    __tracebackhide__ = True
    from testbed import features

    every = [f.name for f in features.ALL]
    wrong = [f"{name!r}{_close(name, every)}" for name in names if name not in every]
    if wrong:
        pytest.fail(f"testbed_feature: no such feature: {', '.join(wrong)}; known: {', '.join(every)}", pytrace=False)


def _guest() -> None:
    """Skip when there can't be a guest; its image offers every feature."""
    __tracebackhide__ = True
    from testbed.machines.lab_guest import require_guest

    try:
        require_guest()
    except TestbedError as e:
        _leave(f"machine microvm: {' '.join(str(e).split())}", {"microvm"})


def _warn(done: CompletedProcess[str]) -> None:
    """Have pytest show the warnings of a file, in its summary and once for all tests that use the file."""
    for row in filter(_WARNING.fullmatch, done.stderr.splitlines()):
        warnings.warn(row, FileWarning, stacklevel=3)


def _refused(done: CompletedProcess[str], machine: str, file: Path, sets: Sequence[str]) -> NoReturn:
    """Skip when the command line found that a feature is missing, else raise the error that it ended with."""
    __tracebackhide__ = True
    words = words_of(done)
    if done.returncode == 2:
        raise InputError(words)
    if done.returncode == 70:
        raise BugError(words)
    if done.returncode != 4:
        raise LabError(words or f"testbed ended with {done.returncode} and said nothing")
    missing = set(re.findall(r"\bfeature ([\w-]+)", words)) or {"microvm" if machine == "auto" else machine}
    if machine in ("auto", "here") and _required():
        here = call(("doctor", str(file), "--json", "--machine", "here", *options(sets)))
        if here.stdout:
            missing |= {f["feature"] for f in json.loads(here.stdout)["features"] if not f["present"]}
    _leave(line_of(done), missing)


def _leave(words: str, missing: Iterable[str]) -> NoReturn:
    """Skip with these words, or fail where TESTBED_REQUIRE says that what is missing must be there."""
    __tracebackhide__ = True
    if asked := sorted(_required() & set(missing)):
        pytest.fail(f"TESTBED_REQUIRE asks for {', '.join(asked)}: {words}", pytrace=False)
    pytest.skip(words)


def _required() -> set[str]:
    return {name.strip() for name in os.environ.get("TESTBED_REQUIRE", "").split(",")} - {""}


def _found(file: str | Path, folders: Sequence[Path]) -> Path:
    """Return the path of a file that counts from one of some folders."""
    __tracebackhide__ = True
    tried = list(dict.fromkeys(folder / file for folder in folders))
    for path in tried:
        if path.is_file():
            return path
    raise InputError(f"{file}: no such file; looked for {' and '.join(map(str, tried))}")


def _case(summary: Mapping[str, Any]) -> Case:
    if summary["folder"] is None:
        return Case(None, summary["verdict"], {})
    folder = Path(summary["folder"])
    metrics = json.loads((folder / "metrics.json").read_text())
    return Case(folder, summary["verdict"], {name: float(m["value"]) for name, m in metrics.items()})


def _missed(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each check of a run that failed, and for each thing that went wrong."""
    for check in summary["checks"]:
        if not check["passed"]:
            value = check["why"] or f"it is {check['value']:g} {check['unit']}"
            yield f"FAIL  {check['metric']} {check['expected']}: {value}"
    yield from summary["failures"]


def _close(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" when a known word is close, else ""."""
    from difflib import get_close_matches  # testbed.language.explain's, without its models

    found = get_close_matches(word, list(known), 1, 0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


_FINDINGS: pytest.StashKey[dict[str, Findings]] = pytest.StashKey()
