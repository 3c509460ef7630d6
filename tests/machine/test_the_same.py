"""The tests of labs on this kernel once more, with each lab in a guest: what holds here holds there.

Rates of more than some Mbit/s are not here, for an emulated processor does not carry them beside other work: the
experiments with MPTCP are in test_lab.py, at lower rates, and tests of shaping are not repeated. Tests that look at
processes, sockets and namespaces from outside of a lab (crash, leaks, side by side, rootless) are about this kernel;
what a guest leaves is looked at in test_microvm.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from subprocess import CompletedProcess
from uuid import uuid4

import pytest

from tests.conftest import MACHINE, ROOT, testbed
from tests.kernel import test_cli, test_exec, test_run
from tests.kernel.test_cli import tree
from tests.kernel.test_run import folder

__all__ = ["folder", "tree"]  # fixtures

pytestmark = [pytest.mark.machine, pytest.mark.xdist_group("same")]

DIFFERENT = {
    "test_names_of_labs_and_nodes_are_completed": "the shell's completion asks no guest",
    "test_on_a_terminal_progress_is_drawn_and_elsewhere_it_is_plain_lines": "progress of a guest is plain lines",
    "test_the_folder_is_kept_and_files_are_those_of_the_host": "a guest has files of its own",
    "test_the_library_runs_commands_with_input_environment_and_folder": "the library has labs of this kernel",
    "test_the_library_names_what_can_not_be_run": "the library has labs of this kernel",
    "test_a_command_ends_with_the_program_that_asked_for_it_and_so_do_its_daemons": "it is the library's",
    "test_a_command_has_three_streams_and_nothing_else_open": "the library has labs of this kernel",
    "test_commands_of_many_threads_and_programs_run_at_the_same_time": "the library has labs of this kernel",
    "test_an_event_takes_effect_at_its_time_and_the_series_show_it": "an emulated processor may be late",
    "test_samples_come_at_least_once_a_second_from_every_node": "an emulated processor may be late",
    "test_tests_that_measure_are_one_group": "it is about the suite",
    "test_a_warning_that_a_file_silences_is_not_said_anywhere": "a file is read here",
    "test_an_interruption_that_a_library_takes_for_an_error_of_its_own_is_one_all_the_same": "it has no lab",
    "test_a_server_that_is_still_writing_when_its_client_has_ended_is_left_to_end": "a guest has programs of its own",
    "test_figures_that_the_host_limited_are_marked": "an emulated processor limits them all",
    "test_a_command_has_the_umask_of_its_caller": "in a guest it has that of the guest, as over ssh",
    "test_whatever_the_umask_every_user_in_a_lab_reads_its_hosts_and_root_alone_writes_them": "the same",
    "test_a_disk_that_a_capture_fills_ends_the_run_with_its_name": "a capture is copied as logs are: it comes later",
    "test_the_effective_file_runs_again": "it is written here, from what was read here",
    "test_a_missing_feature_is_named_with_its_cure_and_nothing_is_created": "a guest lacks none",
}
SAME = {
    name: test
    for module in (test_cli, test_exec, test_run)
    for name, test in vars(module).items()
    if name.startswith("test_") and name not in DIFFERENT
}
globals().update(SAME)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(guests: None) -> Iterator[None]:
    """Labs are in guests."""
    os.environ[MACHINE] = "microvm"
    yield
    del os.environ[MACHINE]


@dataclass(frozen=True)
class There:
    """A lab in a guest, used by the command line."""

    name: str

    def exec(self, node: str, argv: Sequence[str]) -> CompletedProcess[str]:
        """Run a command in a node; all nodes see the processes of the lab."""
        return testbed("exec", self.name, node or "client", "--", *argv)


@pytest.fixture(scope="module")
def lab(elsewhere: None) -> Iterator[There]:
    """The lab of the tests of `exec` and `shell`."""
    name = f"t{uuid4().hex[:10]}"
    done = testbed("up", str(ROOT / "topologies/two-hosts.yaml"), "--name", name)
    assert done.returncode == 0, done.stderr
    yield There(name)
    assert testbed("down", name).returncode == 0
