"""Numbers and layouts of Linux's netlink interfaces, by the names that the kernel's headers give them.

Sources: the headers below include/uapi/linux/ that each section names. Offsets are those of fields of a structure.
"""

from __future__ import annotations

from struct import Struct

# netlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLMSGERR_ATTR_MSG = 1
NLMSGERR = Struct("=iIHHII")  # the error, and the header of the message that it is about
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 1, 10, 11

# genetlink.h
GENL_ID_CTRL = 16
GENLMSGHDR = Struct("=BBH")  # command, version, reserved
CTRL_CMD_GETFAMILY = 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME, CTRL_ATTR_MCAST_GROUPS = 1, 2, 7
CTRL_ATTR_MCAST_GRP_NAME, CTRL_ATTR_MCAST_GRP_ID = 1, 2

# rtnetlink.h
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR = 16, 18, 20, 22
RTM_NEWROUTE, RTM_NEWRULE, RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 24, 32, 36, 37, 38
IFINFOMSG = Struct("=BxHiII")  # family, type, index, flags, change
TCMSG = Struct("=BxxxiIII")  # family, index, handle, parent, info
RTMSG = Struct("=8BI")  # family, destination's and source's length, tos, table, protocol, scope, type, flags
RTPROT_STATIC, RTN_UNICAST, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_TABLE_MAIN = 4, 1, 0, 253, 254
RTN_UNREACHABLE = 7
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE = 1, 4, 5, 6, 15
TCA_KIND, TCA_OPTIONS, TCA_STATS2 = 1, 2, 7
RTEXT_FILTER_SKIP_STATS = 8

# fib_rules.h
FIB_RULE_HDR = Struct("=8BI")  # family, destination's and source's length, tos, table, two reserved, action, flags
FRA_SRC, FRA_TABLE, FR_ACT_TO_TBL = 2, 15, 1

# if.h, if_link.h, veth.h
IFF_UP, IFF_RUNNING = 0x1, 0x40
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_STATS64, IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_EXT_MASK = 23, 26, 28, 29
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_BR_STP_STATE, IFLA_BR_MCAST_SNOOPING = 5, 23
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1

# if_addr.h
IFADDRMSG = Struct("=4BI")  # family, prefix length, flags, scope, index
IFA_ADDRESS, IFA_LOCAL, IFA_F_NODAD = 1, 2, 0x2

# pkt_sched.h, gen_stats.h
TC_LINKLAYER_ETHERNET = 1
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
TCA_NETEM_DELAY_DIST, TCA_NETEM_REORDER, TCA_NETEM_CORRUPT, TCA_NETEM_LOSS = 2, 3, 4, 5
TCA_NETEM_LATENCY64, TCA_NETEM_JITTER64, NETEM_LOSS_GE = 10, 11, 2
TCA_HTB_INIT = 2
TCA_FQ_PLIMIT, TCA_FQ_CODEL_LIMIT, TCA_CODEL_LIMIT, TCA_CAKE_MEMORY = 1, 2, 2, 10
TCQ_PLUG_BUFFER, TCQ_PLUG_RELEASE_INDEFINITE = 0, 2
TCA_STATS_BASIC, TCA_STATS_QUEUE = 1, 3

# sock_diag.h, inet_diag.h, unix_diag.h
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21
INET_DIAG_REQ_V2 = Struct("=BBBxI48s")  # family, protocol, extensions, states, identity
INET_DIAG_MSG = Struct("=4B48s5I")  # family, state, timer, retransmits, identity, counts
INET_DIAG_INFO, INET_DIAG_ULP_INFO, INET_ULP_INFO_MPTCP = 2, 19, 3
INET_DIAG_REQ_PROTOCOL = 3
UNIX_DIAG_REQ = Struct("=BBHIIIII")  # family, protocol, pad, states, inode, what to show, cookie
UNIX_DIAG_MSG = Struct("=BBBxI8s")  # family, type, state, inode, cookie
UNIX_DIAG_NAME, UNIX_DIAG_UID, UDIAG_SHOW_NAME, UDIAG_SHOW_UID = 0, 7, 0x1, 0x40

# tcp.h: offsets in struct tcp_info, and the states of netinet/tcp.h
TCPI_RTT, TCPI_SND_CWND, TCPI_TOTAL_RETRANS = 68, 80, 100
TCPI_BYTES_ACKED, TCPI_BYTES_RECEIVED, TCPI_BYTES_SENT = 120, 128, 200
TCP_ESTABLISHED, TCP_SYN_SENT, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_TIME_WAIT = range(1, 7)
TCP_CLOSE, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_LISTEN, TCP_CLOSING = range(7, 12)

# mptcp.h, mptcp_pm.h
MPTCP_SUBFLOW_ATTR_TOKEN_LOC, MPTCP_SUBFLOW_ATTR_FLAGS = 2, 8
MPTCP_SUBFLOW_ATTR_ID_REM, MPTCP_SUBFLOW_ATTR_ID_LOC = 9, 10
MPTCP_SUBFLOW_FLAG_BKUP_REM, MPTCP_SUBFLOW_FLAG_BKUP_LOC = 0x10, 0x20
MPTCP_PM_CMD_ADD_ADDR, MPTCP_PM_CMD_GET_ADDR = 1, 3
MPTCP_PM_CMD_SET_LIMITS, MPTCP_PM_CMD_GET_LIMITS, MPTCP_PM_CMD_SET_FLAGS = 5, 6, 7
MPTCP_PM_ATTR_ADDR, MPTCP_PM_ATTR_RCV_ADD_ADDRS, MPTCP_PM_ATTR_SUBFLOWS = 1, 2, 3
MPTCP_PM_ADDR_ATTR_FAMILY, MPTCP_PM_ADDR_ATTR_ID, MPTCP_PM_ADDR_ATTR_ADDR4, MPTCP_PM_ADDR_ATTR_ADDR6 = 1, 2, 3, 4
MPTCP_PM_ADDR_ATTR_PORT, MPTCP_PM_ADDR_ATTR_FLAGS, MPTCP_PM_ADDR_ATTR_IF_IDX = 5, 6, 7
