"""Labs that run elsewhere: in a guest of their own, or on a machine that ssh reaches."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence

from msgspec import Struct

from testbed import __version__
from testbed.errors import LabError, Unsupported
from testbed.lab import sources
from testbed.machines.case import Told
from testbed.machines.choose import MICROVM
from testbed.machines.errands import Errand, Machine, asked, enter, perform, target_of
from testbed.machines.guest import command, microvm
from testbed.machines.lab_guest import Progress, Wanted, guest
from testbed.machines.ssh import known, remote
from testbed.machines.ssh.relayed import relayed
from testbed.machines.ssh.remote import Target
from testbed.machines.ssh.request import Request


class Elsewhere(Struct, frozen=True):
    """A lab that is on another machine."""

    lab: str
    machine: Machine

    def enter(self, words: Sequence[str]) -> int:
        """Run the command line there on this process's streams and return its exit status.

        A command of the user's own has the terminal itself; what the command line says is made visible.
        """
        if words[0] in ("exec", "shell"):
            return enter(self.machine, words, (1, 2), terminal=all(os.isatty(fd) for fd in (0, 1)))
        with relayed() as streams:
            return enter(self.machine, words, streams)

    def down(self) -> None:
        """Take the lab down, and its guest with it."""
        if isinstance(self.machine, Target):
            with relayed((2,)) as (said,), open(os.devnull, "w") as null:
                status = enter(self.machine, ("down", self.lab), (null.fileno(), said))
            if status:
                raise LabError(f"lab {self.lab}: machine {self.machine.name} could not take it down; it said why above")
            return
        try:
            # However this ends, also by the kernel's hand in a guest without memory: the guest ends with the lab.
            with relayed((2,)) as (said,), open(os.devnull, "w") as null:
                command.call(self.machine, ("testbed", "down", self.lab), streams=(0, null.fileno(), said))
        finally:
            microvm.stop(self.machine)


def find(lab: str) -> Elsewhere:
    """Return a lab that is in a guest of its name, or LAB@MACHINE."""
    name, at, machine = lab.partition("@")
    return Elsewhere(name, target_of(known.find(machine)) if at else microvm.find(name))


def up(errand: Errand, lab: str, wanted: Wanted, told: Told, progress: Progress) -> int:
    """Bring a lab up or change it on another machine; its guest is kept if that succeeds."""
    if errand.choice.machine != MICROVM:
        machine = target_of(known.find(errand.choice.machine))
        return perform(machine, asked(machine, errand))
    if lab in microvm.guests():
        if wanted.own is not None:
            raise LabError(f"lab {lab}: its guest runs already, and keeps its kernel; `testbed down {lab}` ends it")
        there = microvm.find(lab)
        return perform(there, asked(there, errand))
    with guest(lab, wanted, told, progress) as made:
        status = perform(made.guest, asked(made.guest, errand))
        if status == 0 and "--dry-run" not in errand.words:
            microvm.keep(made.guest)
        return status


def once(errand: Errand, lab: str, wanted: Wanted, told: Told, progress: Progress) -> int:
    """Run a command line that leaves no lab behind."""
    if errand.choice.machine != MICROVM:
        machine = target_of(known.find(errand.choice.machine))
        return perform(machine, asked(machine, errand))
    with guest(lab, wanted, told, progress) as made:
        return perform(made.guest, asked(made.guest, errand))


def same_version(machine: Target) -> str:
    """Return the version there; Unsupported if its version or its sources differ from ours."""
    version = remote.version(machine)
    if version != __version__:
        raise Unsupported(
            f"machine {machine.name}: it has testbed {version}, this is {__version__}: install the same version"
        )
    asks = Request(("--version",), secrets.token_hex(8), version=sources.version())
    with relayed((2,)) as (said,), open(os.devnull, "w") as null:
        status = remote.ask(machine, asks, (null.fileno(), said))
    if status:
        raise Unsupported(f"machine {machine.name}: it can't be used: status {status}; it said why above")
    return version
