"""The program: `testbed`, and `python -m testbed`."""

from testbed.program import script

if __name__ == "__main__":
    script()
