# Everything that a person or CI does with the checkout. Each target does all of its own set-up, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .peers
STAMP := $(VENV)/.installed
# Tests mostly wait for processes that start, so more of them run at once than there are cores.
TESTS_AT_ONCE ?= 4
MINUTES ?= 5
NODES ?= 1
PARTITIONS ?= 1
PYTEST := $(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup check test acceptance again soak fuzz demo bench bench-peers clean

help:  ## what there is to do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## the environment in .venv, with everything that the other targets need

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "predictd needs Python 3.11 or later; set PYTHON=python3.12, say" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "this Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) (the first time this downloads torch, which is large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[embedded,demo,dev]'
	@touch $@

check: $(STAMP)  ## style, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP)  ## pure and integration tests, and one acceptance test of each kind
	$(PYTEST) -m "not slow and not soak"

acceptance: $(STAMP)  ## every kill, fault, client and systemd test
	$(PYTEST) -m slow tests

again: $(STAMP)  ## the tests that failed in the last run, one at a time
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none -m "not soak" tests

soak: $(STAMP)  ## load and random faults for MINUTES=5, then the oracle; SEED=1 repeats one; NODES=3, PARTITIONS=2
	PYTHONPATH=tests $(BIN)/python -m faults.soak --minutes $(MINUTES) --nodes $(NODES) --partitions $(PARTITIONS) \
		$(if $(SEED),--seed $(SEED))

fuzz: $(STAMP)  ## values of any shape from outside; MINUTES=5 for each target, SEED=0
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(or $(SEED),0)

demo: $(STAMP)  ## the main job, shown on real rows; KEEP=1 leaves it running
	@$(BIN)/predictd demo $(if $(KEEP),--keep)

bench: $(STAMP)  ## predictd beside a hand-written loop, and what else is measured; writes docs/performance.md
	$(BIN)/python -m bench.yardstick $(ARGS)
	$(BIN)/python -m bench.training $(ARGS)
	$(BIN)/python -m bench.other_writers $(ARGS)
	$(BIN)/python -m bench.hot_rows $(ARGS)
	$(BIN)/python -m bench.large_tables $(ARGS)
	$(BIN)/python -m bench.page

bench-peers: $(PEERS)/.installed  ## predictd beside the closest peer, too, in an environment of its own
	$(BIN)/python -m bench.yardstick --pathway $(PEERS)/bin/python --json bench/results/peers.json $(ARGS)
	$(BIN)/python -m bench.page

# The peer's own packages come first; torch and what the yardstick's sides share are those of .venv.
$(PEERS)/.installed: $(STAMP)
	@test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet pathway==0.33.0
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zzz_shared.pth"
	@touch $@

clean:  ## forget the environment and all state
	rm -rf $(VENV) .predictd .mypy_cache .ruff_cache .pytest_cache .hypothesis
