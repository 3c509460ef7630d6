/* Run a command on this process's standard streams, and exit with its status (128 + n for signal n).
 *
 *   testbed-call ID DIGEST FOLDER NAME=VALUE... -- WORD...
 *
 * The host runs this program by ssh. The command gets its own session, and this process's terminal if there is one.
 * The host refers to it by ID when it sends signals. When the caller hangs up (the output's pipe or terminal closes, or
 * this process gets SIGTERM or SIGHUP), the command gets SIGHUP, and SIGKILL if it still runs after a while.
 * If the first word is `testbed`, testbed-warm forks the command where it runs; DIGEST is that of the host's sources.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "testbed-guest.h"

#define PATIENCE 3000 /* ms between SIGHUP and SIGKILL */

static _Noreturn void end(const char *what)
{
    dprintf(2, "testbed-call: %s: %s\n", what, strerror(errno));
    exit(255);
}

/* Record a command's process id for the host's signals; 0 removes the record. */
static void name(const char *id, pid_t pid)
{
    char path[300], part[310];

    snprintf(path, sizeof(path), CALLS "/%s.pid", id);
    snprintf(part, sizeof(part), "%s.new", path);
    if (!pid) {
        unlink(path);
        return;
    }
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || dprintf(fd, "%d %d\n", pid, getpid()) < 0 || rename(part, path))
        end(path);
    close(fd);
}

/* Become the command. */
static _Noreturn void become(char **words, const char *folder, char **environment)
{
    char **argv = words;
    int count = 0;

    sigset_t none;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsid();
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (isatty(0))
        ioctl(0, TIOCSCTTY, 1); /* take it from the ssh server's child, for this command's job control */
    close_range(3, ~0U, 0);
    plain_environment();
    for (; strcmp(*environment, "--"); environment++)
        putenv(*environment);
    (void)!chdir(folder);
    if (!strcmp(words[0], "testbed")) {
        while (access(MODULES, F_OK))
            usleep(5000);
        while (words[count])
            count++;
        if (!(argv = calloc((size_t)count + 3, sizeof(*argv))))
            end("memory");
        memcpy(argv + 3, words + 1, (size_t)count * sizeof(*argv));
        argv[0] = "python3";
        argv[1] = "-m";
        argv[2] = "testbed";
    }
    execvp(argv[0], argv);
    dprintf(2, "testbed: %s: %s\n", argv[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

/* Send a command's words and our streams to testbed-warm. Return the connection, or -1 if testbed-warm does not run. */
static int ask(char **words)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX, .sun_path = WARM};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), streams[] = {0, 1, 2};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(streams))];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(streams)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    char length[16];
    struct iovec first = {.iov_base = length};
    struct msghdr message = {.msg_iov = &first, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    size_t all = 0;

    if (fd < 0 || connect(fd, (struct sockaddr *)&where, sizeof(where)))
        return -1;
    for (char **word = words; *word; word++)
        all += strlen(*word) + 1;
    first.iov_len = (size_t)snprintf(length, sizeof(length), "%zu\n", all);
    memcpy(CMSG_DATA(&control.header), streams, sizeof(streams));
    int failed = sendmsg(fd, &message, MSG_NOSIGNAL) < 0;
    for (char **word = words; !failed && *word; word++) {
        const char *from = *word;
        for (size_t left = strlen(from) + 1; !failed && left;) {
            ssize_t sent = send(fd, from, left, MSG_NOSIGNAL);
            failed = sent < 0;
            from += sent;
            left -= failed ? 0 : (size_t)sent;
        }
    }
    if (!failed)
        return fd;
    close(fd);
    return -1;
}

/* Return the next number from testbed-warm: the command's process id, later its status; -1 after the last one. */
static int heard(int connection)
{
    char text[16] = "";
    size_t n = 0;

    while (n < sizeof(text) - 1 && read(connection, text + n, 1) == 1 && text[n] != '\n')
        n++;
    text[n] = 0;
    char *end;
    long number = strtol(text, &end, 10);
    return n && !*end && number >= 0 && number <= INT_MAX ? (int)number : -1;
}

/* Wait for a command, and end it once nobody reads its output any more. */
static void attend(pid_t pid, int ended, int signals)
{
    /* poll(2) reports POLLHUP and POLLERR of the output without being asked to. */
    struct pollfd sources[] = {{.fd = ended, .events = POLLIN}, {.fd = 1}, {.fd = signals, .events = POLLIN}};

    while (poll(sources, 3, -1) <= 0)
        ;
    if (sources[0].revents)
        return;
    kill(-pid, SIGHUP);
    kill(-pid, SIGCONT);
    if (poll(sources, 1, PATIENCE) <= 0)
        kill(-pid, SIGKILL);
}

/* Return the index of the command's first word, -1 if there is none. */
static int command_at(int count, char **words)
{
    int at = 4;

    while (at < count && strcmp(words[at], "--"))
        at++;
    return at + 1 < count ? at + 1 : -1;
}

int main(int count, char **words)
{
    int at = command_at(count, words), status, warm = -1, signals;
    sigset_t hangups;
    pid_t pid;

    if (at < 0 || strlen(words[1]) > NAME_MAX - sizeof(".pid.new") || strchr(words[1], '/')) {
        dprintf(2, "usage: testbed-call ID DIGEST FOLDER NAME=VALUE... -- WORD...\n");
        return 255;
    }
    sigemptyset(&hangups);
    sigaddset(&hangups, SIGTERM);
    sigaddset(&hangups, SIGHUP);
    sigprocmask(SIG_BLOCK, &hangups, NULL);
    signals = signalfd(-1, &hangups, SFD_CLOEXEC);
    if (!strcmp(words[at], "testbed") && (warm = ask(words + 2)) >= 0) {
        if ((pid = heard(warm)) > 0) {
            name(words[1], pid);
            attend(pid, warm, signals);
            status = heard(warm);
            name(words[1], 0);
            if (status < 0) {
                dprintf(2, "testbed-call: what ran the command was killed\n");
                status = 128 + SIGKILL;
            }
            return status;
        }
        close(warm); /* it ended before it started this command: run it without testbed-warm */
    }
    if ((pid = fork()) < 0)
        end("fork");
    if (!pid)
        become(words + at, words[3], words + 4);
    name(words[1], pid);
    attend(pid, (int)syscall(SYS_pidfd_open, pid, 0), signals);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    name(words[1], 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
