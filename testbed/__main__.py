"""The program: `testbed`, and `python -m testbed`."""

from testbed.cli.program import script

if __name__ == "__main__":
    script()
