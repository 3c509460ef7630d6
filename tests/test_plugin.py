"""The pytest plugin, as far as it needs no lab: its marks, its errors, and what it costs those who do not use it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

NOWHERE = "mptcp: {scheduler: no_such}"  # no kernel has it
MARKED = "import pytest\n@pytest.mark.testbed_feature({})\ndef test_it(): ...\n"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our plugin and no other: to load all that is installed takes pytest longer than the rest of these tests."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "testbed.pytest_plugin")


def test_a_pytest_that_uses_no_lab_imports_nothing_of_it() -> None:
    code = (
        "import pytest, sys; before = set(sys.modules); import testbed.pytest_plugin; print(*set(sys.modules)-before)"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {
        "testbed",
        "testbed.cli",
        "testbed.cli.called",
        "testbed.errors",
        "testbed.lab",
        "testbed.lab.asker",
        "testbed.pytest_plugin",
    }


def test_pytest_knows_the_fixture_and_the_mark(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTEST_PLUGINS"):
        monkeypatch.delenv(variable)  # it is found because it is installed
    pytester.makepyfile(MARKED.format(""))
    pytester.runpytest_subprocess("--strict-markers").assert_outcomes(passed=1)
    pytester.runpytest_subprocess("--fixtures").stdout.fnmatch_lines(["lab -- *"])


def test_a_feature_that_is_misspelt_is_an_error_that_lists_the_known_ones(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MARKED.format("'netm', 'veth'"))
    done = pytester.runpytest_subprocess()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*no such feature: 'netm' (did you mean 'netem'?); known: userns, veth, *"])


def test_a_test_is_skipped_with_the_words_of_the_probe(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(pytester.path))
    monkeypatch.delenv("TESTBED_REQUIRE", raising=False)
    pytester.makepyfile(MARKED.format("'iperf3'"))
    done = pytester.runpytest_subprocess("-rs")
    done.assert_outcomes(skipped=1)
    words = "feature iperf3: not in PATH; apt-get install iperf3, or --machine microvm"
    done.stdout.fnmatch_lines([f"SKIPPED * test_a_test_is_skipped_with_the_words_of_the_probe.py:*: {words}"])


def test_where_the_environment_requires_a_feature_its_absence_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(pytester.path))
    monkeypatch.setenv("TESTBED_REQUIRE", "veth, iperf3")
    pytester.makepyfile(MARKED.format("'iperf3'"))
    done = pytester.runpytest_subprocess()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["TESTBED_REQUIRE asks for iperf3: feature iperf3: not in PATH; *"])


@pytest.mark.parametrize(
    ("machine", "required", "outcome"),
    [
        ("microvm", "", "skipped"),
        ("microvm", "iperf3", "skipped"),  # a guest would have it
        ("microvm", "microvm", "errors"),
        ("auto", "", "skipped"),
        ("auto", "microvm", "errors"),
    ],
)
def test_a_mark_may_ask_whether_there_can_be_a_guest(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, machine: str, required: str, outcome: str
) -> None:
    monkeypatch.setenv("PATH", str(pytester.path))  # and so neither iperf3 nor QEMU
    monkeypatch.setenv("TESTBED_REQUIRE", required)
    pytester.makepyfile(MARKED.format(f"'iperf3', machine={machine!r}"))
    done = pytester.runpytest_subprocess("-rs")
    done.assert_outcomes(**{outcome: 1})
    done.stdout.fnmatch_lines(["*machine microvm: a microVM needs qemu-system-x86_64, which is not in PATH: *"])


def test_a_machine_that_nobody_made_known_is_an_error_and_no_reason_to_skip(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MARKED.format("'veth', machine='lab7'"))
    done = pytester.runpytest_subprocess()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*lab7*testbed machine *"])


@pytest.mark.parametrize(
    ("required", "outcomes"),
    [
        ("", {"skipped": 2}),
        ("mptcp-scheduler-no_such", {"failed": 2}),
        ("microvm", {"skipped": 1, "failed": 1}),  # of `here` nobody requires a guest
    ],
)
def test_a_lab_that_no_machine_can_have_skips_its_test_or_fails_it_where_that_is_required(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: str, outcomes: dict[str, int]
) -> None:
    monkeypatch.setenv("PATH", str(pytester.path))
    monkeypatch.setenv("TESTBED_REQUIRE", required)
    pytester.path.joinpath("t.yaml").write_text(f"name: t\nnodes: {{a: {{{NOWHERE}}}}}\n")
    pytester.makepyfile(
        """
        def test_here(lab):
            lab("t.yaml", machine="here")
            assert False

        def test_auto(lab):
            lab("t.yaml")
            assert False
        """
    )
    done = pytester.runpytest_subprocess("-ra")
    done.assert_outcomes(**outcomes)
    done.stdout.fnmatch_lines(["*feature mptcp-scheduler-no_such (scheduler: no_such): *"])
    done.stdout.fnmatch_lines(["*this kernel lacks mptcp-scheduler-no_such *"])


def test_what_is_wrong_with_a_file_is_an_error_in_the_command_lines_words(pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("t.yaml").write_text("name: t\nnodes: {a: {roter: {}}}\n")
    pytester.makepyfile(
        """
        import pytest
        from testbed.errors import InputError

        def test_place(lab):
            with pytest.raises(InputError, match=r"t.yaml:2:13: unknown key 'roter' .did you mean 'router'"):
                lab("t.yaml")

        def test_missing(lab):
            lab("none.yaml")
        """
    )
    done = pytester.runpytest_subprocess()
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*InputError: none.yaml: no such file; looked for */none.yaml"])
    done.stdout.no_fnmatch_line("*def _found(*")  # a test's failure shows the test
