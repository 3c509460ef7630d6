"""The numbers and layouts of netlink messages are those of the kernel's own headers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from struct import Struct

from testbed.linux import uapi

HEADERS = [
    "in",
    "netlink",
    "genetlink",
    "rtnetlink",
    "fib_rules",
    "if",
    "if_link",
    "veth",
    "if_addr",
    "pkt_sched",
    "gen_stats",
    "sock_diag",
    "inet_diag",
    "unix_diag",
    "tcp",
    "mptcp",
    "netfilter",
    "netfilter/nfnetlink",
    "netfilter/nf_tables",
    "netfilter/nf_tables_compat",
    "netfilter/nfnetlink_queue",
    "netfilter/nfnetlink_log",
]
NAMES = {name: value for name, value in vars(uapi).items() if name.isupper()}
STATES = {name for name in NAMES if re.match("TCP_", name)}  # an enum that only the C library has for programs


def assertion(name: str, value: int | Struct) -> str:
    if isinstance(value, Struct):
        return f'_Static_assert(sizeof(struct {name.lower()}) == {value.size}, "{name}");'
    if name.startswith("TCPI_"):
        return f'_Static_assert(offsetof(struct tcp_info, {name.lower()}) == {value}, "{name}");'
    return f'_Static_assert({name} == {value}, "{name}");'


def test_numbers_and_layouts_are_those_of_the_kernels_headers(tmp_path: Path) -> None:
    rows = ["#include <stddef.h>", "#include <netinet/in.h>", *(f"#include <linux/{h}.h>" for h in HEADERS)]
    rows += [assertion(name, value) for name, value in NAMES.items() if name not in STATES]
    (tmp_path / "uapi.c").write_text("\n".join([*rows, ""]))
    done = subprocess.run(
        ("cc", "-fsyntax-only", "-fmax-errors=0", tmp_path / "uapi.c"), capture_output=True, text=True, check=False
    )
    assert not re.findall(r"error: .*", done.stderr), done.stderr
    assert len(NAMES) > 100
