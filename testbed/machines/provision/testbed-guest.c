/* PID 1 of a guest: makes the image its root file system, then carries out the host's requests.
 *
 * It is the only program of the initramfs. It is written in C because an emulated processor takes 20 ms to start each
 * program of busybox, and a second to start Python.
 *
 * Requests come through a virtio-serial port, one per line: words separated by tabs, with %XX for all characters but
 * letters, digits and "_.-~/". The answers are lines of JSON.
 *
 *   ping                          also starts to load the modules that labs need
 *   settle                        answers when these are loaded
 *   activate TIME SEED MACHINE-ID HOSTNAME HOST-KEY AUTHORIZED      SEED and HOST-KEY in hexadecimal digits
 *   mount TAG FOLDER WRITABLE     mount a folder of the host; WRITABLE is 0 or 1
 *   unmount FOLDER
 *   warm DIGEST FOLDER            make testbed-warm import testbed
 *   signal ID NUMBER              send a signal to the command of a testbed-call
 *   hangup ID                     the caller has gone: ssh does not always notice
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <linux/random.h>
#include <linux/udp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "testbed-guest.h"

#define PATIENCE 10 /* s that a signal waits for its command to start */

struct signal_due {
    char id[64];
    int number; /* 0: hang up */
    time_t until;
};

struct guest {
    int port;                             /* to the host */
    int ended;                            /* a signalfd of SIGCHLD */
    int ssh;                              /* the listening socket; -1 before `activate` */
    pid_t modules;                        /* the process that loads modules; 0 before it starts and after it ended */
    int told, said;                       /* pipes to and from testbed-warm; -1 if it does not run */
    int due;                              /* the number of signals */
    struct signal_due signals[64];
};

/* --- set-up ---------------------------------------------------------------------------------------------------- */

/* Report a fatal error on the console, and wait: the host reads it and ends the guest. */
static _Noreturn void fault(const char *format, ...)
{
    int why = errno;
    va_list words;

    va_start(words, format);
    dprintf(2, "testbed: fault: ");
    vdprintf(2, format, words);
    dprintf(2, ": %s\n", strerror(why));
    va_end(words);
    for (;;)
        pause();
}

static void mounted(const char *source, const char *target, const char *type, unsigned long flags, const char *options)
{
    if (mount(source, target, type, flags, options))
        fault("%s can't be mounted at %s", source, target);
}

static void made(const char *folder)
{
    if (mkdir(folder, 0755) && errno != EEXIST)
        fault("%s can't be made", folder);
}

/* Load the kernel modules that a file lists. */
static void load(const char *list)
{
    char name[512];
    FILE *names = fopen(list, "re");

    if (!names)
        fault("%s can't be read", list);
    while (fgets(name, sizeof(name), names)) {
        name[strcspn(name, "\n")] = 0;
        int fd = open(name, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
            fault("%s can't be loaded", name);
        close(fd);
    }
    fclose(names);
}

/* Start a program with these standard streams, and a fourth descriptor unless that is -1. */
static pid_t start(char *const *words, int in, int out, int err, int more)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t how;
    sigset_t none;
    pid_t pid = -1;
    const int streams[] = {in, out, err, more};

    sigemptyset(&none);
    posix_spawnattr_init(&how);
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setsigmask(&how, &none);
    posix_spawn_file_actions_init(&files);
    for (int n = 0; n < (more < 0 ? 3 : 4); n++)
        posix_spawn_file_actions_adddup2(&files, streams[n], n);
    errno = posix_spawn(&pid, words[0], &files, &how, words, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&how);
    return errno ? -1 : pid;
}

static int written(const char *path, const void *content, size_t length, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    int failed = fd < 0 || write(fd, content, length) != (ssize_t)length;

    if (fd >= 0)
        close(fd);
    return failed ? -1 : 0;
}

/* Make the image the root file system: read-only, with an overlay in memory.
 *
 * Return whether the initramfs has modules, of a kernel that is not the image's. Those that the guest needs are loaded.
 */
static bool enter_image(void)
{
    static const char *const moved[] = {"/proc", "/sys", "/dev"};
    char target[32];

    mount("proc", "/proc", "proc", 0, NULL);
    mount("sys", "/sys", "sysfs", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    load("/m/order");
    if (mount("/dev/vda", "/lower", "squashfs", MS_RDONLY, NULL))
        fault("/dev/vda holds no squashfs");
    mounted("rw", "/rw", "tmpfs", 0, "mode=755");
    made("/rw/upper");
    made("/rw/work");
    mounted("root", "/root", "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work");
    bool other = !access("/modules", F_OK);
    if (other)
        mounted("/modules", "/root/usr/lib/modules", NULL, MS_BIND, NULL);
    for (size_t n = 0; n < sizeof(moved) / sizeof(*moved); n++) {
        snprintf(target, sizeof(target), "/root%s", moved[n]);
        mounted(moved[n], target, NULL, MS_MOVE, NULL);
    }
    if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        fault("the image can't be the root");
    return other;
}

/* Bring an interface up; give it an address, unless that is NULL: QEMU's user network has known ones, without DHCP. */
static void up(const char *name, const char *address)
{
    struct ifreq request = {0};
    struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    strcpy(request.ifr_name, name);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
        fault("%s can't be brought up", name);
    if (address) {
        in->sin_family = AF_INET;
        in->sin_addr.s_addr = inet_addr(address);
        if (ioctl(fd, SIOCSIFADDR, &request))
            fault("%s can't have %s", name, address);
        in->sin_addr.s_addr = inet_addr("255.255.255.0");
        if (ioctl(fd, SIOCSIFNETMASK, &request))
            fault("%s can't have a netmask", name);
    }
    close(fd);
}

/* Keep those branches of the kernel's receive path on for good that sockets turn on and off (jump labels).
 *
 * The kernel patches its running code for each change, by an int3 that stands there for a moment
 * (arch/x86/kernel/alternative.c, smp_text_poke_batch_finish). QEMU's multi-threaded TCG before 8.1 does not lock a page
 * while it translates from it, so that an emulated processor may run that int3 later, which panics: a busy guest did so
 * within a few hundred changes, and every ping and every tunnel's socket makes one.
 */
static void keep_branches(void)
{
    const int on = 1, l2tp = UDP_ENCAP_L2TPINUDP;
    const int families[] = {AF_INET, AF_INET6};

    for (size_t n = 0; n < sizeof(families) / sizeof(*families); n++) {
        int held = socket(families[n], SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (held < 0 || setsockopt(held, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof(on)) || /* net/core/dev.c */
            setsockopt(held, IPPROTO_UDP, UDP_ENCAP, &l2tp, sizeof(l2tp))) /* net/ipv4/udp.c, net/ipv6/udp.c */
            fault("a socket can't be held");
    }
}

static void set_up(void)
{
    char *dropbear[] = {"/usr/sbin/dropbear", "-V", NULL};

    bool other = enter_image();
    /* The kernel puts `testbed_init=PROGRAM` of its command line into our environment: use it to look into an image. */
    const char *instead = getenv("testbed_init");
    if (instead) {
        execl(instead, instead, (char *)NULL);
        fault("%s can't be started", instead);
    }
    plain_environment();
    mounted("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
    made(RUN);
    made(CALLS);
    made("/dev/pts");
    made("/dev/shm");
    mounted("devpts", "/dev/pts", "devpts", 0, "mode=620,ptmxmode=666");
    mounted("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    mounted("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
    /* The bounds of a lab need these controllers below the root cgroup. */
    if (!mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
        written("/sys/fs/cgroup/cgroup.subtree_control", "+memory +cpu", 12, 0644);
    /* A guest that runs out of memory must kill the process that takes it, instead of thrashing on its programs
     * (Documentation/admin-guide/mm/multigen_lru.rst, "Thrashing prevention"). */
    written("/sys/kernel/mm/lru_gen/min_ttl_ms", "1000", 4, 0644);
    int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
    /* A program that has run once starts in half the time, and the other processor is idle here. */
    start(dropbear, nowhere, nowhere, nowhere, -1);
    if (!other)
        load("/usr/lib/testbed/ready-modules");
    up("lo", NULL);
    up("eth0", "10.0.2.15");
    keep_branches();
    close(nowhere);
}

/* --- requests of the host -------------------------------------------------------------------------------------- */

/* Return the value of a hexadecimal digit, -1 for any other character. */
static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decode pairs of hexadecimal digits; return the number of bytes, -1 for other characters and for too many digits. */
static ssize_t from_hex(const char *digits, unsigned char *bytes, size_t room)
{
    size_t n = 0;

    for (; digits[0]; digits += 2) {
        int high = digit(digits[0]), low = high < 0 ? -1 : digit(digits[1]);
        if (low < 0 || n == room) {
            errno = EINVAL;
            return -1;
        }
        bytes[n++] = (unsigned char)(high << 4 | low);
    }
    return (ssize_t)n;
}

/* Parse a whole number from 0 to `most`; return -1 for anything else. */
static long number(const char *text, long most)
{
    char *end;

    errno = 0;
    long found = strtol(text, &end, 10);
    if (errno || end == text || *end || found < 0 || found > most) {
        errno = EINVAL;
        return -1;
    }
    return found;
}

/* Reseed the random number generator with bytes for this guest alone: copies of a saved guest share its state. */
static int reseed(const char *seed)
{
    union {
        struct rand_pool_info about;
        unsigned char bytes[sizeof(struct rand_pool_info) + 256];
    } entropy;
    const size_t head = offsetof(struct rand_pool_info, buf);
    ssize_t got = from_hex(seed, entropy.bytes + head, sizeof(entropy.bytes) - head);
    int fd, failed;

    if (got < 0)
        return -1;
    entropy.about.buf_size = (int)got;
    entropy.about.entropy_count = 8 * (int)got;
    fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    failed = fd < 0 || ioctl(fd, RNDADDENTROPY, &entropy) || ioctl(fd, RNDRESEEDCRNG);
    if (fd >= 0)
        close(fd);
    return failed ? -1 : 0;
}

/* Parse seconds since 1970, in the range of a clock. */
static int moment(const char *text, struct timespec *when)
{
    char *end;
    double seconds = strtod(text, &end);

    if (end == text || *end || !(seconds >= 0 && seconds < 1e11)) { /* NaN fails the comparisons, too */
        errno = EINVAL;
        return -1;
    }
    when->tv_sec = (time_t)seconds;
    when->tv_nsec = (long)(1e9 * (seconds - (double)when->tv_sec));
    return 0;
}

/* Turn a copy of a saved guest into a guest of its own: clock, random numbers, names, keys. */
static int activate(struct guest *guest, char **words)
{
    unsigned char key[1024];
    char name[300];
    struct timespec now;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(22), .sin_addr.s_addr = inet_addr("10.0.2.15")};
    const int yes = 1;
    ssize_t length;

    if (moment(words[0], &now) || clock_settime(CLOCK_REALTIME, &now) || reseed(words[1]))
        return -1;
    snprintf(name, sizeof(name), "%s\n", words[2]);
    if (written("/etc/machine-id", name, strlen(name), 0644))
        return -1;
    snprintf(name, sizeof(name), "%s\n", words[3]);
    if (written("/etc/hostname", name, strlen(name), 0644) || sethostname(words[3], strlen(words[3])))
        return -1;
    length = from_hex(words[4], key, sizeof(key));
    if (length < 0 || written(RUN "/host_key", key, (size_t)length, 0600))
        return -1;
    if (written(RUN "/authorized_keys", words[5], strlen(words[5]), 0600))
        return -1;
    guest->ssh = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (guest->ssh < 0 || setsockopt(guest->ssh, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)))
        return -1;
    return bind(guest->ssh, (struct sockaddr *)&here, sizeof(here)) || listen(guest->ssh, 128) ? -1 : 0;
}

/* Start a Dropbear for a connection: that answers sooner than a Dropbear that listens and forks. */
static void answer_ssh(struct guest *guest)
{
    char *words[] = {"/usr/sbin/dropbear", "-i", "-E", "-s", "-m", "-W", "1048576", "-r", RUN "/host_key", "-D", RUN, NULL};
    int connection = accept4(guest->ssh, NULL, NULL, SOCK_CLOEXEC);
    int log = open(RUN "/ssh.log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

    if (connection >= 0 && log >= 0)
        start(words, connection, connection, log, -1);
    close(connection);
    close(log);
}

/* Mount a folder of the host, without a cache: the host edits files in it, or reads what the guest wrote. */
static int mount_share(char **words)
{
    char path[4096];
    unsigned long flags = MS_NODEV | MS_NOSUID | (strcmp(words[2], "1") ? MS_RDONLY : 0);
    size_t length = strlen(words[1]);

    if (words[1][0] != '/' || length >= sizeof(path)) {
        errno = EINVAL;
        return -1;
    }
    memcpy(path, words[1], length + 1);
    for (char *at = path + 1; *at; at++)
        if (*at == '/') {
            *at = 0;
            mkdir(path, 0755);
            *at = '/';
        }
    if (mkdir(path, 0755) && errno != EEXIST)
        return -1;
    return mount(words[0], words[1], "9p", flags, "trans=virtio,version=9p2000.L,cache=none,msize=512000");
}

/* Start, once, to load the modules that labs need; commands of testbed wait for them. */
static void load_modules(struct guest *guest)
{
    static int begun;
    char *words[] = {"/usr/sbin/testbed-modules", NULL};

    if (!begun++)
        guest->modules = start(words, 0, 1, 2, -1);
}

/* Make testbed-warm import testbed from a folder; start it first if it does not run. */
static int warm(struct guest *guest, char **words)
{
    char *python[] = {"/usr/bin/python3", "-I", "-S", "/usr/lib/testbed/warm.pyc", NULL};
    struct sockaddr_un where = {.sun_family = AF_UNIX, .sun_path = WARM};
    int told[2], said[2], listener;

    if (guest->said < 0) {
        listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (listener < 0 || bind(listener, (struct sockaddr *)&where, sizeof(where)) || listen(listener, 128))
            return -1;
        if (pipe2(told, O_CLOEXEC) || pipe2(said, O_CLOEXEC))
            return -1;
        pid_t pid = start(python, told[0], said[1], 2, listener);
        close(told[0]);
        close(said[1]);
        close(listener);
        if (pid < 0) {
            close(told[1]);
            close(said[0]);
            unlink(WARM);
            return -1;
        }
        guest->told = told[1];
        guest->said = said[0];
    }
    return dprintf(guest->told, "%s %s\n", words[0], words[1]) < 0 ? -1 : 0;
}

/* Send a signal to the command of a call; return whether it was sent or has expired. */
static int delivered(const struct signal_due *due)
{
    char path[128];
    FILE *file;
    int pid, call;

    snprintf(path, sizeof(path), CALLS "/%s.pid", due->id);
    if (!(file = fopen(path, "re")))
        return time(NULL) > due->until; /* it has not started yet */
    if (fscanf(file, "%d %d", &pid, &call) != 2 || pid <= 0 || call <= 0)
        ;
    else if (!due->number)
        kill(call, SIGTERM);
    else
        /* A terminal sends these two to the whole process group; kill(1) sends the others to one process. */
        kill(due->number == SIGINT || due->number == SIGQUIT ? -pid : pid, due->number);
    fclose(file);
    return 1;
}

/* --- messages -------------------------------------------------------------------------------------------------- */

static int open_port(void)
{
    char path[300], name[64];

    for (int tries = 0; tries < 6000; tries++) {
        DIR *ports = opendir("/sys/class/virtio-ports");
        for (struct dirent *entry; ports && (entry = readdir(ports));) {
            snprintf(path, sizeof(path), "/sys/class/virtio-ports/%.64s/name", entry->d_name);
            FILE *file = fopen(path, "re");
            int ours = file && fgets(name, sizeof(name), file) && !strcmp(name, "testbed\n");
            if (file)
                fclose(file);
            if (ours) {
                closedir(ports);
                snprintf(path, sizeof(path), "/dev/%.64s", entry->d_name);
                int fd = open(path, O_RDWR | O_CLOEXEC);
                if (fd < 0)
                    fault("%s can't be opened", path);
                return fd;
            }
        }
        if (ports)
            closedir(ports);
        usleep(5000); /* QEMU announces its ports after the driver has started */
    }
    fault("there is no virtio-serial port named testbed");
}

/* Copy a text, escaped for a JSON string, as far as there is room. */
static void quoted(const char *text, char *clean, size_t room)
{
    size_t n = 0;

    for (; *text && n + 2 < room; text++) {
        if (*text == '"' || *text == '\\')
            clean[n++] = '\\';
        clean[n++] = *text >= ' ' && *text < 127 ? *text : '?';
    }
    clean[n] = 0;
}

/* Send one key and value to the host, and a second pair unless its text is NULL: {"KEY": "VALUE", "AND": "TEXT"}. */
static void say(struct guest *guest, const char *key, const char *value, const char *and, const char *text)
{
    char first[256], second[512];

    quoted(value, first, sizeof(first));
    quoted(text ? text : "", second, sizeof(second));
    if (text)
        dprintf(guest->port, "{\"%s\": \"%s\", \"%s\": \"%s\"}\n", key, first, and, second);
    else
        dprintf(guest->port, "{\"%s\": \"%s\"}\n", key, first);
}

static void obey(struct guest *guest, char **words, int count)
{
    const char *verb = words[0], *what = NULL;
    char error[400];
    int failed = 0;

    errno = 0;
    if ((!strcmp(verb, "signal") && count == 3) || (!strcmp(verb, "hangup") && count == 2)) {
        long signal = count == 3 ? number(words[2], NSIG - 1) : 0;
        if (signal >= 0 && guest->due < (int)(sizeof(guest->signals) / sizeof(*guest->signals))) {
            struct signal_due *due = &guest->signals[guest->due++];
            snprintf(due->id, sizeof(due->id), "%s", words[1]);
            due->number = (int)signal;
            due->until = time(NULL) + PATIENCE;
        }
        return;
    }
    if (!strcmp(verb, "activate") && count == 7)
        failed = activate(guest, words + 1);
    else if (!strcmp(verb, "mount") && count == 4)
        failed = mount_share(words + 1), what = words[2];
    else if (!strcmp(verb, "unmount") && count == 2)
        failed = umount2(words[1], 0), what = words[1];
    else if (!strcmp(verb, "warm") && count == 3)
        failed = warm(guest, words + 1);
    else if (!strcmp(verb, "ping") && count == 1)
        load_modules(guest); /* only now: so a guest that was booted answers its first command sooner */
    else if (!strcmp(verb, "settle") && count == 1) {
        load_modules(guest);
        while (guest->modules > 0 && waitpid(guest->modules, NULL, 0) < 0 && errno == EINTR)
            ;
        guest->modules = 0;
    } else {
        errno = EPROTO;
        failed = 1;
    }
    if (failed)
        snprintf(error, sizeof(error), "%s%s%s", what ? what : "", what ? ": " : "", strerror(errno));
    say(guest, "done", verb, "error", failed ? error : NULL);
}

/* Split a line at tabs into at most `most` words, and decode them in place; return their number. */
static int cut(char *line, char **words, int most)
{
    char *next = line;
    int count = 0;

    while (next && count < most) {
        char *word = strsep(&next, "\t"), *to = word;
        words[count++] = word;
        for (const char *from = word; *from; to++) {
            int high = *from == '%' ? digit(from[1]) : -1, low = high < 0 ? -1 : digit(from[2]);
            *to = low < 0 ? *from : (char)(high << 4 | low);
            from += low < 0 ? 1 : 3;
        }
        *to = 0;
    }
    return count;
}

static void take_line(struct guest *guest, char *line)
{
    char *words[8];
    int count = cut(line, words, 8);

    obey(guest, words, count);
}

static void hear(struct guest *guest)
{
    static char inbox[1 << 16];
    static size_t length;
    static int skips; /* discard the rest of a line that is too long */
    char *begin = inbox, *end;
    ssize_t got = read(guest->port, inbox + length, sizeof(inbox) - length);

    if (got <= 0) {
        usleep(10000); /* the host's end of the port is closed */
        return;
    }
    length += (size_t)got;
    while ((end = memchr(begin, '\n', length - (size_t)(begin - inbox)))) {
        *end = 0;
        if (*begin && !skips)
            take_line(guest, begin);
        skips = 0;
        begin = end + 1;
    }
    length -= (size_t)(begin - inbox);
    memmove(inbox, begin, length);
    if (length == sizeof(inbox)) {
        length = 0;
        skips = 1;
    }
}

/* Pass on a message of testbed-warm; after its end, commands run without it. */
static void hear_warm(struct guest *guest)
{
    char digest[128] = "";
    ssize_t got = read(guest->said, digest, sizeof(digest) - 1);

    digest[got > 0 ? strcspn(digest, "\n") : 0] = 0;
    say(guest, "event", "warm", "digest", digest);
    if (got <= 0) {
        unlink(WARM);
        close(guest->said);
        close(guest->told);
        guest->said = guest->told = -1;
    }
}

/* Reap the processes that labs and commands leave behind. */
static void reap(struct guest *guest)
{
    struct signalfd_siginfo about;
    pid_t pid;

    (void)!read(guest->ended, &about, sizeof(about));
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
        if (pid == guest->modules)
            guest->modules = 0;
}

int main(void)
{
    struct guest guest = {.ssh = -1, .told = -1, .said = -1};
    /* Answer the host even if a lab keeps every processor busy: otherwise it would take the guest for dead. */
    const struct sched_param first = {.sched_priority = 1};
    sigset_t children;

    umask(022);
    set_up();
    /* The kernel gave us its console as standard streams. */
    int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    dup2(nothing, 0);
    close(nothing);
    sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &first);
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, NULL);
    guest.ended = signalfd(-1, &children, SFD_CLOEXEC);
    guest.port = open_port();
    say(&guest, "event", "hello", NULL, NULL);
    for (;;) {
        struct pollfd sources[] = {
            {.fd = guest.port, .events = POLLIN},
            {.fd = guest.ended, .events = POLLIN},
            {.fd = guest.ssh, .events = POLLIN},
            {.fd = guest.said, .events = POLLIN},
        };
        if (poll(sources, 4, guest.due ? 20 : -1) > 0) {
            if (sources[0].revents)
                hear(&guest);
            if (sources[1].revents)
                reap(&guest);
            if (sources[2].revents)
                answer_ssh(&guest);
            if (sources[3].revents)
                hear_warm(&guest);
        }
        for (int n = guest.due - 1; n >= 0; n--)
            if (delivered(&guest.signals[n]))
                guest.signals[n] = guest.signals[--guest.due];
    }
}
