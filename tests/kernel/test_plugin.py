"""Labs in tests: pytest runs in a process of its own, with labs of this kernel."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from testbed.lab import reach
from tests.conftest import ROOT, Need
from tests.kernel.remains import MARK, marked, settled

pytestmark = pytest.mark.kernel
pytest_plugins = ["pytester"]

QUICK = "name: quick\nnodes: {a: {}, b: {}}\nlinks: [{name: cable, ends: [a:eth0, b:eth0]}]\n"
PING = "workloads: {rtt: {ping: {from: a, to: b, seconds: 1}}}\nchecks: [{metric: rtt.loss_pct, max: 0}]\n"


@pytest.fixture
def own(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, need: Need) -> Iterator[pytest.Pytester]:
    """A folder with a topology, and the claim of every test here: no process of its labs outlives their pytest."""
    need("userns", "veth", "ipv6")
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # to load all that is installed takes seconds
    monkeypatch.setenv("PYTEST_PLUGINS", "testbed.pytest_plugin")
    pytester.path.joinpath("quick.yaml").write_text(QUICK + PING)
    yield pytester
    assert settled(lambda: {"process": [str(p) for p in marked(mark)]} if marked(mark) else {}) == {}


def test_a_test_uses_a_lab_as_a_person_would(own: pytest.Pytester, need: Need) -> None:
    need("ping")
    own.makepyfile(
        """
        import pytest
        from testbed.errors import InputError

        def test_exec(lab):
            net = lab("quick.yaml")
            assert (net.machine, net.nodes) == ("here", ("a", "b"))
            done = net.exec("a", ["ip", "-br", "addr", "show", "eth0"])
            assert "10.0.1.1/30" in done.stdout
            assert net.exec("b", ["tr", "a-z", "A-Z"], input=b"loud").stdout == "LOUD"
            refused = net.exec("b", ["sh", "-c", "echo no >&2; exit 7"])
            assert (refused.returncode, refused.stderr) == (7, "no\\n")
            with pytest.raises(InputError, match="there is no node aa .did you mean 'a'"):
                net.exec("aa", ["true"])

        def test_run(lab):
            net = lab("quick.yaml", name="named")
            assert net.name.startswith("named-")
            with pytest.raises(InputError, match="there are no metrics yet"):
                net.metrics
            run = net.run()
            assert (run.status, run.verdict) == (0, "passed")
            assert run.metrics["rtt.loss_pct"] == 0
            assert net.metrics == run.metrics
            assert (run.folder / "a/rtt.ping.txt").exists()
            missed = net.run(sets=["checks.0.metric=rtt.rtt_p50_ms"])
            assert (missed.status, missed.verdict) == (1, "failed")
            assert net.metrics == missed.metrics
        """
    )
    own.runpytest_subprocess().assert_outcomes(passed=2)


def test_what_a_lab_was_given_counts_in_its_runs_as_well(own: pytest.Pytester, need: Need) -> None:
    need("ping", "tbf")
    own.makepyfile(
        """
        def test_it(lab):
            net = lab("quick.yaml", sets=["links.cable.rate=20mbit"])
            assert "tbf" in net.exec("a", ["tc", "qdisc", "show", "dev", "eth0"]).stdout
            assert "rate 20000000bit" in (net.run().folder / "plan.txt").read_text()
        """
    )
    own.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_warning_of_the_file_is_one_of_pytest_at_the_line_of_the_test(own: pytest.Pytester, need: Need) -> None:
    need("tbf")
    own.path.joinpath("slow.yaml").write_text(QUICK.replace("]}]", "], rate: 11mbps}]"))
    own.makepyfile("def test_it(lab):\n    lab('slow.yaml')\n")
    done = own.runpytest_subprocess()
    done.assert_outcomes(passed=1, warnings=1)
    done.stdout.fnmatch_lines(["*.py:2: FileWarning: *slow.yaml:3:*: warning: 11mbps is 88mbit here, *rate-in-bytes]"])
    strict = own.runpytest_subprocess("-W", "error::testbed.pytest_plugin.FileWarning")
    strict.assert_outcomes(failed=1)


def test_an_experiment_has_its_cases(own: pytest.Pytester, need: Need) -> None:
    need("ping")
    own.path.joinpath("twice.yaml").write_text("topology: quick.yaml\nrepeat: 2\n")
    own.makepyfile(
        """
        import pytest
        from testbed.errors import InputError

        def test_it(lab):
            run = lab("quick.yaml").run("twice.yaml")
            assert (run.status, run.verdict) == (0, "passed")
            assert [c.metrics["rtt.loss_pct"] for c in run.cases] == [0, 0]
            assert len({c.folder for c in run.cases}) == 2
            with pytest.raises(InputError, match="2 cases"):
                run.metrics
        """
    )
    own.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_command_ends_at_its_timeout_and_what_it_leaves_behind_does_not_hold_the_test(own: pytest.Pytester) -> None:
    own.makepyfile(
        """
        import subprocess, time
        import pytest

        def test_it(lab):
            net = lab("quick.yaml")
            began = time.monotonic()
            assert net.exec("a", ["sh", "-c", "sleep 300 & echo went on"]).stdout == "went on\\n"
            with pytest.raises(subprocess.TimeoutExpired):
                net.exec("a", ["sleep", "301"], timeout=1)
            assert time.monotonic() - began < 60
            assert "301" not in net.exec("a", ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\\\0' ' '"]).stdout
        """
    )
    own.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_test_that_fails_leaves_no_lab_and_its_report_has_what_the_command_line_said(
    own: pytest.Pytester, need: Need
) -> None:
    need("ping")
    own.makepyfile(
        """
        from pathlib import Path

        def test_it(lab):
            net = lab("quick.yaml")
            Path("name").write_text(net.name)
            assert net.run(sets=["checks.0.metric=rtt.rtt_p50_ms"]).status == 0
        """
    )
    done = own.runpytest_subprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*testbed up quick.yaml*", "$ testbed up *", "*testbed run quick.yaml*"])
    done.stdout.fnmatch_lines(["testbed: 1 of 1 checks failed", "(exit 1)", "FAIL  rtt.rtt_p50_ms <= 0: it is * ms"])

    assert own.path.joinpath("name").read_text() not in reach.names()


def test_a_lab_that_linux_refuses_is_an_error_in_the_command_lines_words(own: pytest.Pytester) -> None:
    own.path.joinpath("bad.yaml").write_text("name: bad\nnodes: {a: {commands: [[sh, -c, 'echo why >&2; exit 9']]}}\n")
    own.makepyfile("def test_it(lab):\n    lab('bad.yaml')\n")
    done = own.runpytest_subprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*LabError: *sh -c 'echo why >&2; exit 9': it ended with status 9*"])


@pytest.mark.parametrize(("required", "outcome"), [("", "skipped"), ("iperf3", "failed")])
def test_a_run_that_lacks_a_program_skips_or_fails_as_a_lab_does(
    own: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: str, outcome: str
) -> None:
    monkeypatch.setenv("PATH", str(own.path))
    monkeypatch.setenv("TESTBED_REQUIRE", required)
    shutil.copy(ROOT / "topologies/two-hosts.yaml", own.path)
    own.makepyfile("def test_it(lab):\n    lab('quick.yaml').run('two-hosts.yaml')\n    assert False\n")
    done = own.runpytest_subprocess("-rs")
    done.assert_outcomes(**{outcome: 1})
    done.stdout.fnmatch_lines(["*feature iperf3 (workload iperf3): not in PATH; apt-get install iperf3*"])


def test_files_count_from_the_tests_folder_and_then_from_the_root(own: pytest.Pytester) -> None:
    below = own.mkdir("below")
    below.joinpath("quick.yaml").write_text("name: nearer\nnodes: {near: {}}\n")
    own.path.joinpath("pytest.ini").write_text("[pytest]\n")
    own.path.joinpath("far.yaml").write_text("name: far\nnodes: {far: {}}\n")
    below.joinpath("test_it.py").write_text(
        "def test_it(lab):\n"
        "    assert lab('quick.yaml').nodes == ('near',)\n"
        "    assert lab('far.yaml').nodes == ('far',)\n"
    )
    own.runpytest_subprocess("below").assert_outcomes(passed=1)


def test_workers_that_use_the_same_file_and_name_at_the_same_time_do_not_meet(own: pytest.Pytester) -> None:
    own.makepyfile(
        """
        import time
        from pathlib import Path
        import pytest

        @pytest.mark.parametrize("mine, other", ["ab", "ba"])
        def test_it(lab, mine, other):
            net = lab("quick.yaml", name="same")
            net.exec("a", ["ip", "link", "set", "eth0", "alias", mine])
            Path(mine).write_text(net.name)
            deadline = time.monotonic() + 60
            while not Path(other).exists():  # both are up now
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert f"alias {mine}" in net.exec("a", ["ip", "link", "show", "eth0"]).stdout
            assert net.exec("a", ["ping", "-c1", "-W5", "b"]).returncode == 0
        """
    )
    own.runpytest_subprocess("-p", "xdist", "-n", "2").assert_outcomes(passed=2)
    assert own.path.joinpath("a").read_text() != own.path.joinpath("b").read_text()


def test_a_pytest_that_is_killed_leaves_no_lab(own: pytest.Pytester) -> None:
    # The fixture `own` sees to it that nothing is left.
    own.makepyfile(
        """
        import json, os, signal
        from pathlib import Path

        def test_it(lab):
            net = lab("quick.yaml")
            Path("up.json").write_text(json.dumps(net.exec("a", ["hostname"]).stdout))
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert own.runpytest_subprocess().ret == -9
    assert json.loads(Path(own.path, "up.json").read_text()), "it was up"
