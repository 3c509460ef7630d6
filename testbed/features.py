"""What a topology may require of a machine: each feature a name, what it is for and how to get it (data only)."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Group = Literal["kernel", "MPTCP", "multicast", "Wi-Fi", "tools"]
MICROVM = "--machine microvm"
CONGESTION = "tcp-congestion-"  # and the name of the algorithm
MPTCP_LIMITS, MPTCP_ENDPOINTS = "mptcp-limits-", "mptcp-endpoints-"  # and a number


class Feature(Struct, frozen=True):
    """Something that a machine offers or not; `machines.here` knows how each is probed.

    `rests_on` and `program` are what its presence hangs on within one boot: a kernel module's folder, a sysctl,
    a program that is run to find out.
    """

    name: str
    purpose: str
    cure: str
    group: Group = "kernel"
    kernel: bool = True  # probed in a scratch namespace, else outside
    refused: bool = False  # a kernel without it refuses the step that needs it: no probe is needed beforehand
    rests_on: tuple[str, ...] = ()
    program: str = ""
    channel: tuple[str, int] | None = None  # a country and a frequency (MHz), which REGDB must allow
    stated: tuple[str, str] | None = None  # by `requires` of a file: the key there, and the value


def _module(
    name: str, purpose: str, module: str, group: Group = "kernel", refused: bool = False, program: str = ""
) -> Feature:
    cure = f"modprobe {module}, or {MICROVM}"
    folder = f"/sys/module/{module.partition(' ')[0]}"
    return Feature(name, purpose, cure, group, refused=refused, rests_on=(folder,), program=program)


def _config(name: str, purpose: str, config: str, group: Group = "kernel", refused: bool = False) -> Feature:
    return Feature(name, purpose, f"a kernel with {config}, or {MICROVM}", group, refused=refused)


def _tool(name: str, purpose: str, package: str, group: Group = "tools", program: str = "") -> Feature:
    cure = f"apt-get install {package}, or {MICROVM}"
    return Feature(name, purpose, cure, group, kernel=False, program=program)


def scheduler(name: str) -> Feature:
    """Return an MPTCP packet scheduler as a feature, "" is any; which there are depends on the kernel and its BPF."""
    listed = "/proc/sys/net/mptcp/available_schedulers"
    cure = f"a kernel that has it (`sysctl net.mptcp.available_schedulers`), or {MICROVM}"
    feature = "-".join(filter(None, ("mptcp-scheduler", name)))
    return Feature(feature, f"scheduler: {name or 'any'}", cure, "MPTCP", refused=True, rests_on=(listed,))


def mptcp_limits(count: int) -> Feature:
    """Return limits of the path manager as a feature; Linux 7.2 and later take more than 8."""
    cure = "give at most 8, or boot Linux 7.2 or later"
    return Feature(f"{MPTCP_LIMITS}{count}", f"limits of {count}", cure, "MPTCP")


def mptcp_endpoints(count: int) -> Feature:
    """Return a number of endpoints as a feature; Linux 7.2 and later keep more than 8."""
    cure = "give at most 8 (an interface counts once for each family), or boot Linux 7.2 or later"
    return Feature(f"{MPTCP_ENDPOINTS}{count}", f"{count} endpoint addresses", cure, "MPTCP")


def congestion(name: str) -> Feature:
    """Return a congestion control of TCP as a feature; which there are depends on the kernel and its modules."""
    listed = "/proc/sys/net/ipv4/tcp_available_congestion_control"
    cure = f"modprobe tcp_{name}, or {MICROVM}"
    return Feature(f"{CONGESTION}{name}", f"congestion: {name}", cure, rests_on=(listed,))


def stated(key: str, value: str) -> Feature:
    """Return what `requires` of a file states beside features: a `kernel`, one of its `counters` or `programs`."""
    cures = {
        "kernel": "boot such a kernel",
        "counters": "boot a kernel that has this counter",
        "programs": f"install the package that has {value}",
    }
    group: Group = "tools" if key == "programs" else "kernel"
    purpose = f"requires: {key}"
    name = value if key == "programs" else f"kernel{value}" if key == "kernel" else f"counter {value}"
    return Feature(name, purpose, f"{cures[key]}, or {MICROVM}", group, kernel=False, stated=(key, value))


def named(name: str) -> Feature | None:
    """Return the feature of a name, None when there is none."""
    if found := next((f for f in ALL if f.name == name), None):
        return found
    if name == MPTCP_UNHEARD.name:
        return MPTCP_UNHEARD
    for prefix, make in ((CONGESTION, congestion), (f"{MPTCP_SCHEDULER.name}-", scheduler)):
        if name.startswith(prefix) and name != prefix:
            return make(name.removeprefix(prefix))
    return None


def channel(country: str, freq: int, where: str) -> Feature:
    """Return the permission to have an access point on a channel as a feature; `where` is its place in the file."""
    purpose = f"{where}: an access point on {freq} MHz in {country}"
    cure = "choose another frequency or country"
    return Feature(f"channel-{country}-{freq}", purpose, cure, "Wi-Fi", kernel=False, channel=(country, freq))


USERNS = Feature(
    "userns",
    "labs without root",
    f"sysctl user.max_user_namespaces=10000, or run as root, or {MICROVM}",
    refused=True,
    rests_on=(
        "/proc/sys/user/max_user_namespaces",
        "/proc/sys/user/max_net_namespaces",
        "/proc/sys/kernel/unprivileged_userns_clone",
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
    ),
)
VETH = _module("veth", "links", "veth", refused=True)
BRIDGE = _module("bridge", "role bridge", "bridge", refused=True)
IPV6 = Feature("ipv6", "family ipv6", f"a kernel with CONFIG_IPV6 and no ipv6.disable=1, or {MICROVM}", refused=True)
VLAN = _module("vlan", "VLANs by `commands` (8021q)", "8021q")
TUN = _module("tun", "tunnels in user space", "tun")
TAP = _module("tap", "Ethernet in user space", "tun")
NFT_MPTCP = Feature(
    "nft-mptcp",
    "middleboxes that see and strip MPTCP",
    f"apt-get install nftables and modprobe nf_tables, or {MICROVM}",
    rests_on=("/sys/module/nf_tables",),
    program="nft",
)
QDISCS = {
    "netem": _module("netem", "delay, jitter, loss, duplicate, corrupt, reorder", "sch_netem", refused=True),
    "tbf": _module("tbf", "rate", "sch_tbf", refused=True),
    "fq_codel": _module("fq_codel", "queue: fq_codel", "sch_fq_codel", refused=True),
    "codel": _module("codel", "queue: codel", "sch_codel", refused=True),
    "fq": _module("fq", "queue: fq", "sch_fq", refused=True),
    "cake": _module("cake", "queue: cake", "sch_cake", refused=True),
    "bfifo": _config("bfifo", "queue limits in bytes", "CONFIG_NET_SCHED", refused=True),
    "htb": _module("htb", "a rate that changes all the time (tc-htb(8))", "sch_htb", refused=True),
    "plug": _module("plug", "a link of an access point returns", "sch_plug", refused=True),
    "pfifo": _config("pfifo", "queue limits in packets", "CONFIG_NET_SCHED", refused=True),
}

MULTIPATH_SEED = Feature(
    "multipath-seed",
    "several next hops that spread the flows of a file in the same way each time",
    f"a kernel of 6.11 or later, or {MICROVM}",
    rests_on=("/proc/sys/net/ipv4/fib_multipath_hash_seed",),
)

MIDDLEBOX = _module("middlebox", "role middlebox on a router", "nf_tables")
MIDDLEBOX_BRIDGE = _module("middlebox-bridge", "role middlebox on a bridge (NF_TABLES_BRIDGE)", "nf_tables")
MIDDLEBOX_NAT = _module("middlebox-nat", "nat and firewall of a middlebox", "nft_chain_nat")
MIDDLEBOX_REJECT = _module("middlebox-bridge-reject", "reject of a middlebox on a bridge", "nft_reject_bridge")

MPTCP = _config("mptcp", "role mptcp", "CONFIG_MPTCP (5.6 or later) and net.mptcp.enabled=1", "MPTCP")
MPTCP_DIAG = _module("mptcp-diag", "subflows in the samples", "mptcp_diag", "MPTCP")
MPTCP_KERNEL_PM = _config("mptcp-kernel-pm", "path_manager: kernel", "CONFIG_MPTCP (5.6 or later)", "MPTCP")
MPTCP_USERSPACE_PM = _config("mptcp-userspace-pm", "path_manager: userspace", "CONFIG_MPTCP (5.19 or later)", "MPTCP")
MPTCP_SCHEDULER = scheduler("")
# Not one of ALL: it is about what others do at the moment. What always changes is never remembered.
MPTCP_UNHEARD = Feature(
    "mptcp-unheard",
    "hosts with path_manager: userspace that refuse joins",
    f"end what listens to MPTCP's events, such as another lab with a path manager in user space, or {MICROVM}",
    "MPTCP",
    rests_on=("/proc/uptime",),
)

MROUTE = _config("mroute", "IPv4 multicast routing", "CONFIG_IP_MROUTE", "multicast")
MROUTE6 = _config("mroute6", "IPv6 multicast routing", "CONFIG_IPV6_MROUTE", "multicast")
AMT = _module("amt", "AMT by the kernel (RFC 7450)", "amt", "multicast")

HWSIM = _module("mac80211_hwsim", "simulated radios", "mac80211_hwsim radios=0", "Wi-Fi")
HWSIM_MLO = Feature(
    "mac80211_hwsim-mlo",
    "simulated radios with MLO",
    f"modprobe mac80211_hwsim radios=0 of a kernel whose hwsim has MLO_SUPPORT, or {MICROVM}",
    "Wi-Fi",
    rests_on=HWSIM.rests_on,
)
HOSTAPD = _tool("hostapd", "access points", "hostapd", "Wi-Fi")
HOSTAPD_BE = Feature(
    "hostapd-11be",
    "access points with MLO (802.11be)",
    f"a hostapd built with CONFIG_IEEE80211BE=y (Debian's is not), or {MICROVM}",
    "Wi-Fi",
    kernel=False,
    program="hostapd",
)
WPA_SUPPLICANT = _tool("wpa_supplicant", "stations", "wpasupplicant", "Wi-Fi")
WPA_SUPPLICANT_MLO = _tool(
    "wpa_supplicant-mlo", "stations with MLO", "wpasupplicant (2.11 or later)", "Wi-Fi", "wpa_supplicant"
)
REGDB = _tool("regulatory-db", "channels of 5 and 6 GHz", "wireless-regdb", "Wi-Fi")

IPERF3 = _tool("iperf3", "workload iperf3", "iperf3")
IPERF3_MPTCP = _tool("iperf3-mptcp", "iperf3 --mptcp", "iperf3 (3.19 or later)", program="iperf3")
MPTCPIZE = _tool("mptcpize", "iperf3 with protocol: mptcp", "mptcpize")
DUMPCAP = _tool("dumpcap", "capture", "wireshark-common")
TCPDUMP = _tool("tcpdump", "packets, by hand", "tcpdump")
TSHARK = _tool("tshark", "captures as text", "tshark")
PING = _tool("ping", "workload ping", "iputils-ping")
SMCROUTE = _tool("smcroute", "router: {multicast: true}", "smcroute", "multicast", "smcrouted")

ALL = (
    *(USERNS, VETH, BRIDGE, VLAN, IPV6, TUN, TAP, *QDISCS.values(), MULTIPATH_SEED, NFT_MPTCP),
    *(MIDDLEBOX, MIDDLEBOX_BRIDGE, MIDDLEBOX_NAT, MIDDLEBOX_REJECT),
    *(MPTCP, MPTCP_DIAG, MPTCP_KERNEL_PM, MPTCP_USERSPACE_PM, MPTCP_SCHEDULER),
    *(MROUTE, MROUTE6, SMCROUTE, AMT),
    *(HWSIM, HWSIM_MLO, HOSTAPD, HOSTAPD_BE, WPA_SUPPLICANT, WPA_SUPPLICANT_MLO, REGDB),
    *(IPERF3, IPERF3_MPTCP, MPTCPIZE, DUMPCAP, TCPDUMP, TSHARK, PING),
)
