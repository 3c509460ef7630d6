"""The program: `testbed`, and `python -m testbed`."""

import gc

gc.set_threshold(200_000)  # as `main` does, which has other callers: imports are the most of what a command makes

from testbed.cli import script  # noqa: E402 (typer's import is the first that it is for)

if __name__ == "__main__":
    script()
