"""A lab in a Python program: up, a command in a node, down."""

import sys

import testbed

with testbed.up(testbed.load("topologies/two-hosts.yaml"), "from-python") as lab:
    done = lab.exec("client", ("ip", "route", "get", "10.0.1.2"))
    sys.stdout.write(done.stdout)
