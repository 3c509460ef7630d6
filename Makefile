# On a fresh Debian machine, `make demo` runs the main experiment and `make test` the tests; both install what they need.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
WORKERS ?= 4
TOOLS := iperf3:iperf3 dumpcap:wireshark-common tshark:tshark mptcpize:mptcpize ping:iputils-ping tc:iproute2 git:git \
  smcrouted:smcroute
MACHINE_TOOLS := qemu-system-x86_64:qemu-system-x86 mmdebstrap:mmdebstrap debian-distro-info:distro-info \
  newuidmap:uidmap cc:gcc unsquashfs:squashfs-tools zstd:zstd ssh:openssh-client sshd:openssh-server
PEERS := cc:gcc mn:mininet brctl:bridge-utils

.PHONY: setup tools peers machine demo demo-mptcp test pure lint lint-python lint-shell lint-c lint-words dist docs bench fidelity cases fuzz soak clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/'

setup: tools $(VENV)/.done ## install Debian packages, and Python packages at the tested versions
	@$(BIN)/python -m compileall -q testbed # with PYTHONDONTWRITEBYTECODE, every command would compile it again

# Only missing packages are installed: if there are none, neither root nor a network is needed. Debian starts a service
# for smcroute, which would route multicast on this machine; labs start their own daemons in their nodes.
define install
	@missing=""; for pair in $(1); do \
	  PATH="$$PATH:/usr/sbin:/sbin" command -v $${pair%%:*} >/dev/null || missing="$$missing $${pair##*:}"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; \
	  as_root=""; [ "$$(id -u)" = 0 ] || as_root=sudo; export DEBIAN_FRONTEND=noninteractive; \
	  $$as_root apt-get -qq update && $$as_root apt-get -qq install -y --no-install-recommends $$missing >/dev/null || exit 1; \
	  case "$$missing " in *" smcroute "*) \
	    [ ! -d /run/systemd/system ] || $$as_root systemctl --quiet disable --now smcroute;; esac; fi
endef

tools:
	$(call install,$(TOOLS))
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { as_root=""; [ "$$(id -u)" = 0 ] || as_root=sudo; \
	  $$as_root apt-get -qq update && $$as_root apt-get -qq install -y --no-install-recommends python3-venv >/dev/null; }

peers:
	$(call install,$(PEERS))

$(VENV)/.done: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The packages of the documentation are as large as half of the others, so only `make docs` and `make test` install them.
$(VENV)/.docs: $(VENV)/.done
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

demo: machine ## run Wi-Fi MLO, MPTCP and AMT in one lab for thirty seconds, with events and checks
	@$(BIN)/testbed run experiments/reference.yaml

demo-mptcp: setup ## compare MPTCP with TCP over two shaped paths, on this kernel without a guest
	@$(BIN)/testbed run experiments/mptcp-aggregation.yaml

machine: setup ## install QEMU and build the image of the microVM (takes minutes, once)
	$(call install,$(MACHINE_TOOLS))
	@$(BIN)/testbed image build || [ $$? = 4 ]

# Each of the processes of a suite would compile the tests and pytest's plugins again, which is half of their start.
test pure: export PYTHONDONTWRITEBYTECODE =

test: machine $(VENV)/.docs ## run all tests
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadgroup -m "not machine and not quiet" -p no:rerunfailures
	# A busy host can stop an emulated processor for seconds, which then misses beacons and deadlines, and multi-threaded
	# TCG sometimes breaks a booting kernel: a test in a guest has three tries, and reports each. The main experiment
	# fills the processors of a small machine, and rates are within three percent only on idle processors: these tests
	# run alone, and those without a guest have one try.
	@$(BIN)/pytest -q -n 2 --dist loadgroup -m "machine and not quiet" --reruns 2 --durations 12 tests/machine
	@$(BIN)/pytest -q -m "quiet and not machine" -p no:rerunfailures tests/kernel tests/test_docs.py
	@$(BIN)/pytest -q -m "machine and quiet" --reruns 2 --durations 12 tests/machine

pure: setup ## the tests that need no lab and no root; with another Python: PYTHON=python3.13 VENV=.venv-3.13
	@$(BIN)/pytest -q -n $(WORKERS) --ignore tests/kernel --ignore tests/machine -m "not kernel and not machine" -p no:rerunfailures

lint: lint-python lint-shell lint-c lint-words ## check Python, shell scripts, C and spelling, without running anything

lint-python: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Every file of the tree that says so in its name or in its first line.
lint-shell: setup
	@find .ci benchmarks docs testbed tests -type f \( -name '*.sh' -print0 -o -exec \
	  awk 'FNR == 1 && /^#!.*[\/ ](ba|da)?sh( |$$)/ { printf "%s%c", FILENAME, 0 } { nextfile }' {} + \) \
	  | xargs -0 $(BIN)/shellcheck

lint-c:
	$(call install,gcc:gcc)
	@find benchmarks testbed tests -name '*.c' -print0 | xargs -0 -P 2 -I FILE \
	  gcc -std=gnu17 -O2 -Wall -Wextra -Werror -fanalyzer -I testbed/machines/provision -c -o /dev/null FILE

lint-words: setup
	@$(BIN)/codespell .

dist: setup ## build the source archive and the wheel into dist/, and inspect them
	@rm -rf dist
	@$(BIN)/hatchling build --directory dist
	@$(BIN)/pytest -q tests/test_wheel.py -p no:rerunfailures

docs: setup $(VENV)/.docs ## build these pages as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "build/site/index.html"

bench: setup peers ## compare the speed with Mininet, ip -batch and a C program
	@$(BIN)/python benchmarks/bringup.py
	@$(BIN)/python benchmarks/execution.py
	@$(BIN)/python benchmarks/planning.py
	@$(BIN)/python benchmarks/reporting.py
	@$(BIN)/python benchmarks/transfer.py
	@$(BIN)/python benchmarks/path_manager.py

fidelity: setup ## measure how near rates, delays, losses, traces and paths come to what a file says: MACHINE=microvm
	@$(BIN)/python benchmarks/fidelity.py $(if $(MACHINE),--machine $(MACHINE))

# N is the number of inputs, SEED the first seed, KINDS selects kinds: see `python -m tests.fuzz --help`.
cases: setup ## run the files of public reports and print what came of each: CASES= the beginning of their names
	@$(BIN)/python -m tests.cases $(CASES)

conformance: setup ## run families of MPTCP behaviour and print a table: FAMILIES= their names, KTAP=1 prints KTAP
	@$(BIN)/python -m tests.conformance $(FAMILIES) $(if $(KTAP),--ktap)

fuzz: setup ## try broken inputs, and labs that are killed, stopped or out of disk space: N= SEED= KINDS=
	$(call install,cc:gcc)
	@$(BIN)/python -m tests.fuzz $(KINDS) $(if $(N),--n $(N)) $(if $(SEED),--seed $(SEED))

soak: setup ## repeat up, exec and down, and check that nothing grows: N=
	@$(BIN)/python -m tests.fuzz soak $(if $(N),--n $(N))

clean: ## remove what make created
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
