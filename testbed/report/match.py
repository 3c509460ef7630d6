"""A process that matches one regular expression: `match.py SECONDS EXPRESSION`, with the text on standard input.

It prints group 1 of the last match, or all of it, and ends with status 0, with 1 if nothing matches, and by SIGXCPU
when that takes too long.
"""

import os
import re
import resource
import sys
from math import ceil


def main(seconds: str, expression: str) -> int:
    """Search; the bound is on processor time, so that a busy machine changes no result."""
    text = sys.stdin.buffer.read().decode(errors="replace")
    spent = resource.getrusage(resource.RUSAGE_SELF)
    limit = ceil(spent.ru_utime + spent.ru_stime + float(seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    found = None
    for found in re.finditer(expression, text, re.MULTILINE):  # noqa: B007 (the last one is wanted)
        pass
    if found is None:
        return 1
    os.write(1, ((found[1] if found.re.groups else found[0]) or "").encode(errors="replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
