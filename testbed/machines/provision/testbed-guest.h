/* What the two programs of a guest share: where they leave things for each other, and the environment of commands. */
#pragma once
#define RUN "/run/testbed"
#define WARM RUN "/warm"       /* the socket of testbed-warm */
#define MODULES RUN "/modules" /* there when what labs take is loaded */
#define CALLS RUN "/call"      /* ID.pid: the process of a command, and its testbed-call's */

#include <stdlib.h>

static inline void plain_environment(void)
{
    clearenv();
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/root", 1);
    setenv("LANG", "C.UTF-8", 1);
}
