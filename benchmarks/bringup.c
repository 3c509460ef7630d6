/* The bound of bringup.py: the same netlink messages as testbed sends, with nothing around them.
 *
 * bringup SHAPE N ROUTES builds a star, stars of 1000 hosts each, or a chain of N nodes with the routes of a file, prints {"up": seconds}, answers every line "ADDRESS" with
 * {"reached": bool} (a ping from the first node), and at the end of its input prints {"down": seconds} and exits.
 * One thread, one process, no name anywhere: a node is a namespace that lives by a socket and a descriptor. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LO = 1, BRIDGE = 99, ETH = 100, BATCH = 1 << 15, FULL = BATCH - 1024 };

struct node { int socket, namespace; };
struct route { int node, index, length; uint32_t to, via; };

static struct { char bytes[BATCH]; size_t length; struct nlmsghdr *last; } batch;

static void die(const char *what) {
    fprintf(stderr, "bringup: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) die(path);
    close(fd);
}

/* ---- encoding: one growing batch ------------------------------------------------------------------------------- */

static void append(const void *data, size_t size) {
    if (size) memcpy(batch.bytes + batch.length, data, size); /* a nest has no content of its own, and no `data` */
    batch.length += NLMSG_ALIGN(size);
    batch.last->nlmsg_len = batch.bytes + batch.length - (char *)batch.last;
}

static void message(int type, int flags, const void *body, size_t size) {
    static uint32_t sequence;
    batch.last = (struct nlmsghdr *)(batch.bytes + batch.length);
    struct nlmsghdr header = {.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags, .nlmsg_seq = ++sequence};
    append(&header, sizeof header);
    append(body, size);
}

static void attribute(int type, const void *data, size_t size) {
    struct rtattr header = {.rta_type = type, .rta_len = RTA_LENGTH(size)};
    append(&header, sizeof header);
    append(data, size);
}

static void number(int type, uint32_t value) { attribute(type, &value, sizeof value); }
static void text(int type, const char *value) { attribute(type, value, strlen(value) + 1); }

static struct rtattr *nest(int type) {
    struct rtattr *opened = (struct rtattr *)(batch.bytes + batch.length);
    attribute(type, NULL, 0);
    return opened;
}

static void close_nest(struct rtattr *opened) {
    opened->rta_len = batch.bytes + batch.length - (char *)opened;
}

/* Only the last message asks for an answer: the kernel reports the errors of the others anyway. */
static void flush(int socket) {
    if (!batch.length) return;
    batch.last->nlmsg_flags |= NLM_F_ACK;
    if (send(socket, batch.bytes, batch.length, 0) < 0) die("send");
    for (uint32_t answered = 0, wanted = batch.last->nlmsg_seq; answered != wanted;) {
        char bytes[4096];
        ssize_t length = recv(socket, bytes, sizeof bytes, 0);
        if (length < 0) die("recv");
        for (struct nlmsghdr *h = (void *)bytes; NLMSG_OK(h, length); h = NLMSG_NEXT(h, length)) {
            if (h->nlmsg_type != NLMSG_ERROR) continue;
            errno = -((struct nlmsgerr *)NLMSG_DATA(h))->error;
            if (errno) die("the kernel refused a message");
            answered = h->nlmsg_seq;
        }
    }
    batch.length = 0;
}

/* ---- the messages ---------------------------------------------------------------------------------------------- */

/* Locally administered, and a different one for every end. */
static void mac(uint32_t serial) {
    unsigned char bytes[6] = {2, 0, serial >> 24, serial >> 16, serial >> 8, serial};
    attribute(IFLA_ADDRESS, bytes, sizeof bytes);
}

/* One queue each: otherwise veth waits for two RCU grace periods on a machine of several CPUs. */
static void end_of_veth(const char *name, uint32_t serial) {
    text(IFLA_IFNAME, name);
    mac(serial);
    number(IFLA_NUM_TX_QUEUES, 1);
    number(IFLA_NUM_RX_QUEUES, 1);
}

static void veth(int index, const char *name, int master, int peer_index, const char *peer_name, int peer_namespace) {
    static uint32_t serial;
    struct ifinfomsg main_end = {.ifi_index = index};
    if (master) main_end.ifi_flags = main_end.ifi_change = IFF_UP;
    message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &main_end, sizeof main_end);
    end_of_veth(name, ++serial);
    if (master) number(IFLA_MASTER, master);
    struct rtattr *info = nest(IFLA_LINKINFO);
    text(IFLA_INFO_KIND, "veth");
    struct rtattr *data = nest(IFLA_INFO_DATA), *peer = nest(VETH_INFO_PEER);
    struct ifinfomsg peer_end = {.ifi_index = peer_index};
    append(&peer_end, sizeof peer_end);
    end_of_veth(peer_name, ++serial);
    number(IFLA_NET_NS_FD, peer_namespace);
    close_nest(peer);
    close_nest(data);
    close_nest(info);
}

static void bridge(int index, const char *name) {
    struct ifinfomsg body = {.ifi_index = index};
    message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
    text(IFLA_IFNAME, name);
    mac(UINT32_MAX);
    struct rtattr *info = nest(IFLA_LINKINFO);
    text(IFLA_INFO_KIND, "bridge");
    struct rtattr *data = nest(IFLA_INFO_DATA);
    attribute(IFLA_BR_MCAST_SNOOPING, "\0", 1);
    close_nest(data);
    close_nest(info);
}

static void up(int index) {
    struct ifinfomsg body = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    message(RTM_NEWLINK, 0, &body, sizeof body);
}

/* A message of its own before the one that brings the link up: the kernel applies the flags of a message first. */
static void no_link_local(int index) {
    struct ifinfomsg body = {.ifi_index = index};
    message(RTM_NEWLINK, 0, &body, sizeof body);
    struct rtattr *families = nest(IFLA_AF_SPEC), *inet6 = nest(AF_INET6);
    unsigned char mode = IN6_ADDR_GEN_MODE_NONE;
    attribute(IFLA_INET6_ADDR_GEN_MODE, &mode, sizeof mode);
    close_nest(inet6);
    close_nest(families);
}

static void host_end(int index, uint32_t address, int prefix) {
    struct ifaddrmsg body = {.ifa_family = AF_INET, .ifa_prefixlen = prefix, .ifa_index = index};
    message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
    address = htonl(0x0a000000 + address);
    attribute(IFA_LOCAL, &address, sizeof address);
    attribute(IFA_ADDRESS, &address, sizeof address);
    no_link_local(index);
    up(index);
}

static void route(const struct route *r) {
    struct rtmsg body = {.rtm_family = AF_INET, .rtm_dst_len = r->length, .rtm_table = RT_TABLE_MAIN,
                         .rtm_protocol = RTPROT_STATIC, .rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST};
    message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof body);
    number(RTA_OIF, r->index);
    number(RTA_TABLE, RT_TABLE_MAIN);
    if (r->length) attribute(RTA_DST, &r->to, sizeof r->to);
    attribute(RTA_GATEWAY, &r->via, sizeof r->via);
}

/* ---- the two shapes -------------------------------------------------------------------------------------------- */

/* A socket belongs to the namespace it was opened in, so nothing enters a node again. */
static struct node make_node(const char *sysctl) {
    if (unshare(CLONE_NEWNET) < 0) die("unshare");
    struct node made = {socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE),
                        open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)};
    if (made.socket < 0 || made.namespace < 0) die("namespace");
    setsockopt(made.socket, SOL_NETLINK, NETLINK_CAP_ACK, &(int){1}, sizeof(int));
    if (sysctl) write_file(sysctl, "1");
    return made;
}

/* Hosts from `first` on at a bridge of their own; those after the first keep no descriptor but their socket. */
static struct node star(struct node *nodes, int first, int size, uint32_t base, int prefix) {
    struct node hub = make_node("/proc/sys/net/ipv6/conf/default/disable_ipv6");
    for (int i = 0; i < size; i++) nodes[first + i] = make_node(NULL);
    up(LO);
    bridge(BRIDGE, "s1");
    for (int i = 1; i <= size; i++) {
        char port[IFNAMSIZ];
        snprintf(port, sizeof port, "p%d", i);
        veth(ETH + i, port, BRIDGE, ETH, "eth0", nodes[first + i - 1].namespace);
        if (batch.length > FULL) flush(hub.socket);
    }
    flush(hub.socket);
    for (int i = 1; i <= size; i++) {
        struct node *host = &nodes[first + i - 1];
        up(LO);
        host_end(ETH, base + i, prefix);
        flush(host->socket);
        if (first + i > 2) close(host->namespace), host->namespace = -1;
    }
    return hub;
}

/* As many hosts a bridge as fit (a bridge has 1023 ports at most); bridges come up last: while one is down no port
 * computes a spanning tree. */
static void stars(struct node *nodes, struct node *hubs, int size, int most) {
    int count = (size + most - 1) / most;
    for (int h = 0; h < count; h++) {
        int here = h + 1 < count ? most : size - h * most;
        hubs[h] = star(nodes, 1 + h * most, here, (uint32_t)h << 16, count > 1 ? 16 : 8);
    }
    for (int h = 0; h < count; h++) {
        up(BRIDGE);
        flush(hubs[h].socket);
    }
}

static void chain(struct node *nodes, int size) {
    for (int i = 1; i <= size; i++) nodes[i] = make_node("/proc/sys/net/ipv4/ip_forward");
    for (int i = 1; i < size; i++) {
        veth(ETH + 1, "eth1", 0, ETH, "eth0", nodes[i + 1].namespace);
        flush(nodes[i].socket);
    }
    for (int i = 1; i <= size; i++) {
        up(LO);
        if (i > 1) host_end(ETH, 4 * (i - 2) + 2, 30);
        if (i < size) host_end(ETH + 1, 4 * (i - 1) + 1, 30);
        flush(nodes[i].socket);
    }
}

/* Rows "n3 10.0.0.0/22 10.0.0.5 eth0", those of a node together; read before the time begins. */
static struct route *read_routes(const char *path, size_t *count) {
    FILE *file = fopen(path, "r");
    struct route *found = NULL;
    char to[64], via[64];
    int node, end;
    if (!file) die(path);
    for (*count = 0; fscanf(file, " n%d %63s %63s eth%d", &node, to, via, &end) == 4; ++*count) {
        if (!(*count & (*count - 1)) && !(found = realloc(found, 2 * (*count + 1) * sizeof *found))) die("realloc");
        struct route *r = &found[*count];
        *r = (struct route){.node = node, .index = ETH + end};
        char *slash = strchr(to, '/');
        if (slash) *slash = 0, r->length = atoi(slash + 1);
        if ((slash && inet_pton(AF_INET, to, &r->to) != 1) || inet_pton(AF_INET, via, &r->via) != 1) die(path);
    }
    fclose(file);
    return found;
}

static void add_routes(struct node *nodes, const struct route *routes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        route(&routes[i]);
        if (i + 1 == count || routes[i + 1].node != routes[i].node) flush(nodes[routes[i].node].socket);
    }
}

static int reached(struct node from, const char *address) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        if (setns(from.namespace, CLONE_NEWNET) < 0) die("setns");
        dup2(STDERR_FILENO, STDOUT_FILENO);
        execlp("ping", "ping", "-q", "-c", "1", "-w", "3", address, NULL);
        die("ping");
    }
    return waitpid(child, &status, 0) == child && status == 0;
}

int main(int count, char **arguments) {
    int size = count == 4 ? atoi(arguments[2]) : 0;
    if (size < 2) return fprintf(stderr, "usage: bringup star|stars|chain N ROUTES\n"), 2;
    size_t planned;
    struct route *routes = read_routes(arguments[3], &planned);
    struct node *nodes = calloc(size + 1, sizeof *nodes), *hubs = calloc(size + 1, sizeof *hubs);
    if (!nodes || !hubs) die("nodes");
    setvbuf(stdout, NULL, _IOLBF, 0);

    double start = now();
    int outside = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (strcmp(arguments[1], "chain"))
        stars(nodes, hubs, size, strcmp(arguments[1], "star") ? 1000 : size);
    else
        chain(nodes, size);
    add_routes(nodes, routes, planned);
    if (setns(outside, CLONE_NEWNET) < 0) die("setns");
    printf("{\"up\": %.6f}\n", now() - start);

    for (char line[64]; fgets(line, sizeof line, stdin);) {
        line[strcspn(line, "\n")] = 0;
        printf("{\"reached\": %s}\n", reached(nodes[1], line) ? "true" : "false");
    }
    start = now();
    for (int i = 0; i <= size; i++) {
        for (struct node *n = &nodes[i]; n; n = n == &nodes[i] ? &hubs[i] : NULL) {
            if (!n->socket) continue; /* nobody */
            close(n->socket);
            if (n->namespace >= 0) close(n->namespace);
        }
    }
    printf("{\"down\": %.6f}\n", now() - start);
    return 0;
}
