"""`python -m testbed` is the command line."""

from testbed.cli import script

script()
