"""What keys mean, for editors: those whose model does not say it (language/schema.py adds them to the schema)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_LINK = "Direction Shaping Link"
_BOTH = "Shaping Link"
_TIME = "Start, on the clock of the run"

# By the models that have the key ("" is the file itself).
DESCRIBED: Mapping[str, Mapping[str, str]] = {
    "": {
        "name": "Name of the lab, and of its folder in results/",
        "description": "Free text",
        "families": "IP families of planned addresses and routes, the preferred one first",
        "nodes": "Name -> node, which is a host unless it has a role",
        "links": "Pairs of interfaces that are joined, with their shaping",
        "workloads": "Name -> what sends, receives or runs, and is measured",
        "capture": "Interfaces whose packets are recorded",
        "samples": "How often counters are read",
        "events": "What happens at a time of the run",
        "checks": "What metrics must be",
        "resources": "Limits of the whole lab",
        "requires": "What the file needs beyond what its words imply",
        "repeat": "How often each case runs",
        "seed": "Seed of what is random, recorded in the results",
    },
    "AccessPoint": {
        "ssid": "Name of the network; each access point of a lab has its own",
        "security": "How stations join",
        "mlo_links": "Links of an AP MLD, one to three",
    },
    "Bursts": {
        "p": "Chance to turn from good to bad, for each packet",
        "r": "Chance to turn from bad to good, for each packet",
        "bad": "Loss in the bad state",
        "good": "Loss in the good state",
    },
    "Capture": {"interfaces": "node:interface, with * and ? as in a shell; air:* are the channels of Wi-Fi"},
    "Check": {
        "metric": "Name of the metric",
        "min": "The value is at least this",
        "max": "The value is at most this",
        "equals": "The value is this",
        "present": "true: the metric was measured; false: it was not",
        "at": "The value of a sampled metric at this time of the run",
    },
    "Command": {
        "node": "Where it runs",
        "argv": "The command as a list of words; no shell reads it",
        "at": _TIME,
    },
    _LINK: {
        "rate": "Bits per second that leave (mbit), or bytes per second (mbps), as in tc(8)",
        "burst": "What leaves at full speed after a pause; planned when left out",
        "delay": "Added to each packet of one direction: a round trip has it twice",
        "jitter": "How much the delay varies",
        "distribution": "How the delay varies",
        "duplicate": "Share of packets that are sent twice",
        "corrupt": "Share of packets with a bit that is wrong",
        "reorder": "Share of packets that overtake those that are delayed",
        "queue": "What waits where the link is slower than the sender",
    },
    _BOTH: {
        "mtu": "Bytes of a packet, of both ends; 1500 when left out",
        "forward": "What differs from the first end to the second",
        "reverse": "What differs from the second end to the first",
    },
    "Link": {"ends": "The two interfaces that are joined, each node:interface"},
    "Endpoint": {
        "interface": "The interface whose address it is",
        "address": "An address of the interface, for one that has several",
        "flags": "What the path manager does with it (ip-mptcp(8))",
    },
    "Event": {
        "at": "Time of the run",
        "command": "A command that runs at the node",
        "sysctl": "Kernel parameters of the node's namespace that change",
        "action": "What happens to the endpoint",
        "address": "An interface of the node loses and gets addresses",
    },
    "Iperf3 Ping Transfer": {
        "from": "The node that starts it",
        "to": "The node at the other end",
        "seconds": "How long it runs",
        "at": _TIME,
        "family": "IP family; the first of the file when left out",
    },
    "Iperf3": {
        "protocol": "What carries the data",
        "reverse": "The other end sends",
    },
    "Limits": {
        "subflows": "How many the path manager makes beside the first",
        "add_addr_accepted": "How many announced addresses it joins",
    },
    "MloLink": {"link_id": "Link ID (IEEE 802.11be)"},
    "Mptcp": {
        "limits": "Limits of the path manager",
        "endpoints": "Addresses that the path manager uses or announces",
        "checksum_enabled": "net.mptcp.checksum_enabled",
        "allow_join_initial_addr_port": "net.mptcp.allow_join_initial_addr_port",
        "stale_loss_cnt": "net.mptcp.stale_loss_cnt",
        "syn_retrans_before_tcp_fallback": "net.mptcp.syn_retrans_before_tcp_fallback",
    },
    "Multicast": {
        "source": "The node that sends",
        "receivers": "The nodes that join",
        "group": "The multicast address",
        "seconds": "How long the source sends",
        "at": _TIME,
    },
    "Node": {
        "bridge": "The node is an Ethernet switch",
        "router": "The node forwards IP packets",
        "access_point": "The node is a Wi-Fi access point",
        "station": "The node joins an access point",
        "middlebox": "The node, a router or a bridge, does more to packets than to pass them on",
        "mptcp": "The node speaks MPTCP",
        "amt_gateway": "The node brings multicast in by AMT (RFC 7450)",
        "amt_relay": "The node gives multicast out by AMT (RFC 7450)",
    },
    "Ping": {"interval": "Time between two requests", "to_interface": "The target is this interface's address of `to`"},
    "Queue": {"discipline": "The queue discipline (tc(8))"},
    "Readdress": {
        "interface": "The interface",
        "remove": "address/length that it loses",
        "add": "address/length that it gets",
    },
    "Receiver": {"node": "The node that joins"},
    "Resources": {"memory": "Memory of all processes of the lab; beyond it one is killed"},
    "Samples": {"every": "Interval"},
    "Security": {
        "akm": "Authentication and key management",
        "pairwise": "Cipher of unicast frames",
        "password": "Password of SAE",
    },
    "Service": {"argv": "The program as a list of words; no shell reads it"},
    "Station": {"ssid": "The access point that it joins"},
    "Work": {
        "iperf3": "A flow of TCP, UDP or MPTCP",
        "transfer": "Connections of TCP or MPTCP, by programs of testbed's own",
        "ping": "Round-trip times",
        "multicast": "A stream to several receivers",
        "command": "A program of your own",
    },
}


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield (model, key, what it means) of each key here."""
    for models, keys in DESCRIBED.items():
        for model in models.split() or [""]:
            yield from ((model, key, text) for key, text in keys.items())
