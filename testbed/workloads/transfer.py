"""Workload `transfer`: TCP or MPTCP connections by testbed's own two programs, which nothing but their data joins."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from testbed import features
from testbed.drivers.facts import Listening
from testbed.metrics import table
from testbed.metrics.measured import Measured
from testbed.metrics.recorded import Recorded
from testbed.spec import Spec
from testbed.steps import START, Spawn, Step, Wait
from testbed.units import Moment, Rate, Size, Word
from testbed.workloads import transfer_report as found
from testbed.workloads.place import Expected, Task, began_late

Protocol = Literal["tcp", "mptcp"]
Fallback = Literal["forbid", "allow", "require"]
LONGEST = 60.0  # seconds that so many bytes may take when the file does not say
_MARGIN = 10.0  # seconds that the program itself may take to give up
_PORTS = 65536


class Protocols(Spec):
    """What the program of each end asks its kernel for."""

    from_: Protocol = Field(alias="from", description="What the client's sockets are")
    to: Protocol = Field(description="What the server's socket is")


class Messages(Spec):
    """Requests of the client, each with an answer of the server."""

    request: Size = Field(description="Bytes of a request")
    response: Size = Field(description="Bytes of an answer")
    every: Moment | None = Field(
        None, gt=0, description="A request is due so often; when left out, as soon as the one before is answered"
    )


class Outcome(Spec):
    """How the transfer is to end."""

    outcome: Literal[found.OUTCOMES] = Field(description="Its name, such as completed or reset")  # type: ignore[valid-type]


def _protocols(value: Any) -> Any:
    return {"from": value, "to": value} if isinstance(value, str) else value


class Transfer(Spec):
    """Connections between two nodes that send so many bytes, or for some seconds, or requests and answers."""

    from_: str = Field(alias="from")
    to: str
    protocol: Annotated[Protocols, BeforeValidator(_protocols, json_schema_input_type=Protocol | Protocols)] = Field(
        Protocols(**{"from": "tcp", "to": "tcp"}), description="tcp or mptcp, or what each side speaks: {from, to}"
    )
    bytes: Size | None = Field(None, description="Send so many, all connections together; `seconds` then bounds it")
    seconds: Moment = Field(10, gt=0, description="How long data or requests are sent")
    at: Moment = 0.0
    connections: int = Field(1, ge=1, le=1000, description="Connections, which begin at the same time")
    rate: Rate | None = Field(None, description="What the sender offers, all connections together")
    reverse: bool = Field(False, description="`to` sends and `from` receives")
    bidir: bool = Field(False, description="Both ends send, each at `rate`; what `to` sends has metrics `reverse_*`")
    messages: Messages | None = Field(None, description="Requests and answers in place of a stream of bytes")
    congestion: Word | None = Field(None, description="TCP congestion control algorithm")
    window: Size | None = Field(None, description="Bytes of the sockets' buffers, of which the kernel makes twice that")
    mss: int | None = Field(None, ge=88, le=9216, description="Maximum segment size (bytes)")
    family: Literal["ipv4", "ipv6"] | None = None
    to_interface: str | None = Field(None, description="Connect to this interface's address of `to`")
    port: int | None = Field(None, ge=1, le=65535, description="Port of the server; one of its own when left out")
    bind: str | None = Field(None, description="Interface of `from`: send from its address, and by it unless mptcp")
    source_port: int | None = Field(None, ge=1, le=65535, description="Port of the first connection of the client")
    backlog: int = Field(1024, ge=0, le=65535, description="Connections and joins that may wait for the server")
    linger: int | None = Field(
        None, ge=0, le=3600, description="The client closes at once and waits so many seconds for its data; 0 resets"
    )
    interval: Moment = Field(0.1, ge=0.05, le=60, description="Time between two looks at the sockets")
    patience: Moment = Field(20, le=3600, description="How long what is on its way may take after `seconds`")
    fallback: Fallback | None = Field(
        None, description="To TCP, where MPTCP is meant: forbid (if both sides are mptcp), allow or require"
    )
    expect: Outcome | None = Field(None, description="A check of how it ends; otherwise it must complete")

    def seconds_long(self) -> float:
        """Return how long it sends, at most."""
        return LONGEST if self.bytes is not None and "seconds" not in self.model_fields_set else float(self.seconds)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return (field, node) for every node that it names."""
        return (("from", self.from_), ("to", self.to))

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for each fault."""
        faults = []
        if self.bidir and self.reverse:
            faults.append(("reverse", "with `bidir` both ends send: leave out one of the two"))
        if self.messages is not None:
            stated = [f for f in ("bytes", "rate", "reverse", "bidir") if f in self.model_fields_set]
            faults += [(f, "leave this out with `messages`: requests go to `to`, answers come back") for f in stated]
        if self.linger is not None and (self.reverse or self.bidir):
            faults.append(("linger", "the client closes first only if it alone sends: leave out reverse and bidir"))
        if self.linger == 0 and self.bytes is not None:
            faults.append(("linger", "0 drops what is on its way, so not all bytes would arrive: write `seconds`"))
        if self.source_port is not None and self.source_port + self.connections > _PORTS:
            last = _PORTS - self.connections
            faults.append(("source_port", f"{self.connections} connections need as many ports: write at most {last}"))
        if self.fallback in ("forbid", "require") and "mptcp" not in (self.protocol.from_, self.protocol.to):
            faults.append(("fallback", "no side is mptcp: there is nothing that could fall back"))
        if self.fallback == "forbid" and not self.both_mptcp:
            faults.append(("fallback", "one side is tcp, so the connection falls back always: allow or require it"))
        return faults

    @property
    def speaks(self) -> str:
        """What its connections are meant to be: MPTCP only if both sides are."""
        return self.protocol.from_ if self.protocol.from_ == self.protocol.to else "tcp"

    @property
    def both_mptcp(self) -> bool:
        """Whether its connections are meant to be MPTCP."""
        return self.speaks == "mptcp"

    @property
    def forbidden(self) -> bool:
        """Whether a connection that falls back to TCP is a failed check."""
        return (self.fallback or ("forbid" if self.both_mptcp else "allow")) == "forbid"

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that it needs."""
        own = (features.congestion(self.congestion),) if self.congestion else ()
        return (features.MPTCP, *own) if "mptcp" in (self.protocol.from_, self.protocol.to) else own

    def listens(self, task: Task) -> int:
        """Return the port of the server."""
        return self.port or task.port

    def _argv(self, task: Task, end: Literal["client", "server"]) -> tuple[str, ...]:
        target, client = task.target(self.from_, self.to, self.to_interface, self.family), end == "client"
        sends = self.bidir or (self.messages is None and client != self.reverse)
        receives = self.bidir or (self.messages is None and client == self.reverse)
        protocol = self.protocol.from_ if client else self.protocol.to
        words: dict[str, object] = {"port": self.listens(task), "connections": self.connections}
        words |= {"mptcp": 1} if protocol == "mptcp" else {}
        words |= {"sends": 1} if sends else {}
        words |= {"receives": 1} if receives else {}
        words |= {"bytes": self.bytes, "seconds": f"{self.seconds_long():g}", "patience": f"{self.patience:g}"}
        words |= {"rate": f"{self.rate / 8:g}" if self.rate is not None and sends else None}
        if self.messages is not None:
            every = f"{self.messages.every:g}" if self.messages.every is not None else None
            words |= {"request": self.messages.request, "response": self.messages.response, "every": every}
        words |= {"congestion": self.congestion, "window": self.window, "mss": self.mss, "linger": self.linger}
        words |= {"interval": f"{self.interval:g}" if self.interval != 0.1 else None}
        if client:
            source = self.source_port if self.source_port is not None else task.source_port
            words |= {"connect": target, "source_port": source}
            if self.bind is not None:
                apart = self.protocol.from_ != "mptcp"  # whose subflows leave by interfaces of their own
                words["bind"] = task.bound(self.from_, self.bind, self.to, target, by_interface=apart)
        else:
            words |= {"family": 6 if ":" in target else None, "backlog": self.backlog}
        words["out"] = f"{self.from_ if client else self.to}/{task.name}.{end}"
        return ("testbed.transfer", *(f"{key}={value}" for key, value in words.items() if value is not None))

    def servers(self, task: Task) -> list[Step]:
        """Return the server, and the wait until it listens."""
        name = f"{task.name}.server"
        server = Spawn(self.to, name, self._argv(task, "server"), may_end=True, forked=True)
        return [server, Wait(self.to, Listening(self.listens(task)), START, name)]

    def clients(self, task: Task) -> list[Step]:
        """Return the client, which ends by itself before it would be killed."""
        name = f"{task.name}.client"
        within = self.seconds_long() + self.patience + _MARGIN
        return [Spawn(self.from_, name, self._argv(task, "client"), at=self.at, within=within, forked=True)]

    def _both(self, name: str, folder: Recorded) -> found.Both:
        return found.both(name, folder, (self.from_, self.to), self.connections, self.interval, self.seconds_long())

    def ended(self, name: str, folder: Recorded) -> tuple[str, str]:
        """Return the name of its outcome, and a sentence if it did not complete."""
        return found.ended(self._both(name, folder))

    def failure(self, name: str, folder: Recorded) -> str:
        """Return "": what a transfer comes to is a check."""
        return ""

    def metrics(self) -> tuple[str, ...]:
        """Return the names that `read` gives."""
        of = ["transfer"]
        of += ["reply"] if self.messages is not None else []
        of += ["back"] if self.bidir else []
        return tuple(n for kind in of for n in table.names(kind, "mptcp" if self.both_mptcp else "tcp"))

    def read(self, name: str, folder: Recorded) -> dict[str, Measured]:
        """Return what arrived and when, what the senders saw, and how many connections spoke MPTCP."""
        both = self._both(name, folder)
        sender, receiver = (both.server, both.client) if self.reverse else (both.client, both.server)
        metrics = found.figures(receiver, sender, self.bytes, folder)
        if self.bidir:
            back = found.figures(both.client, both.server, self.bytes, folder)
            metrics |= {f"reverse_{key}": value for key, value in back.items()}
        if self.messages is not None:
            metrics |= found.answers(both.client, folder)
        metrics |= found.connections(both) if folder.window is None else {}
        return {key: value for key, value in metrics.items() if key in self.metrics()}

    def expectations(self, name: str, folder: Recorded) -> Iterator[Expected]:
        """Yield how it was to end, and that it was to stay MPTCP: always where that was said, else if it did not."""
        if folder.origin is None or folder.window is not None:
            return
        both = self._both(name, folder)
        outcome, why = found.ended(both)
        wanted = self.expect.outcome if self.expect is not None else "completed"
        if self.expect is not None or outcome != wanted:
            met = outcome == wanted
            yield Expected(f"{name} outcome", f"= {wanted}", None, met, "" if met else f"{outcome}: {why}")
        yield from found.fallback(name, both, self.fallback, self.forbidden)

    def doubts(self, name: str, folder: Recorded) -> Iterator[tuple[float, str, str]]:
        """Yield a doubt if one of the two programs did not run for a while, and one if its data came late."""
        both = self._both(name, folder)
        for end in (both.client, both.server):
            if late := list(found.stalls(end)):
                longest, began = max(late)
                seen = f"its {end.name} in {end.node} did not run for {longest:.1f} s from {began:.1f} s on"
                yield sum(length for length, _ in late), f"goodput, gap and delay of {name}", seen
        yield from began_late(name, self.read(name, folder).get("start_s"), self.at)
