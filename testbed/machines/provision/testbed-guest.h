/* Shared by the two programs of a guest: paths of the files that they exchange, and the environment of commands. */
#pragma once
#define RUN "/run/testbed"
#define WARM RUN "/warm"       /* the socket of testbed-warm */
#define MODULES RUN "/modules" /* exists once the modules that labs need are loaded */
#define CALLS RUN "/call"      /* ID.pid: the process ids of a command and of its testbed-call */

#include <stdlib.h>

static inline void plain_environment(void)
{
    clearenv();
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/root", 1);
    setenv("LANG", "C.UTF-8", 1);
}
