"""The program: `testbed`, and `python -m testbed`."""

import gc

gc.set_threshold(200_000)  # a short life: collecting what imports and plans make would cost as much as making it

from testbed.cli import script  # noqa: E402 (typer's import is the first that it is for)

if __name__ == "__main__":
    script()
