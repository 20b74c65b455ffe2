# The entry points of this repository. `make help` lists them.

BINARY := $(or $(CARGO_TARGET_DIR),target)/release/stormglass
TRAINER := $(BINARY)-train
PYTHON ?= python3
CORE ?= 0
RUNS ?= 10
SECONDS ?= 3600
SEED ?= $(shell date +%s)000
FAULTS ?= 100

.DEFAULT_GOAL := help
.PHONY: help setup build demo test soak bench bench-lstm chaos lab lab-down

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing on Debian or Ubuntu (asks for sudo if it must)
	@scripts/setup

build: setup ## build the release binary
	cargo build --release --locked $(if $(FEATURES),--features $(FEATURES))

demo: build ## build a real cluster, kill its primary under load, show what happened (KEEP=1 leaves it running)
	@mkdir -p target/lab
	@$(BINARY) lab run kill-primary --report target/lab/report.json $(if $(KEEP),--keep)
	@echo "The report is in target/lab/report.json"

test: ## run all tests
	@scripts/test

soak: setup ## simulate faults on the real controller and agents for SECONDS=3600, from SEED on; stops at the first broken rule
	SIMULATION_SECONDS=$(SECONDS) SIMULATION_FIRST=$(SEED) cargo test --release --locked --test simulation no_seed -- --nocapture

bench: build ## the LSTM's speed against candle_nn's and PyTorch's; failover times, median and greatest of RUNS=10 runs each
	@mkdir -p target/lab
	@$(MAKE) --no-print-directory bench-lstm
	@for scenario in kill-primary hang-primary switchover; do \
		$(BINARY) lab run $$scenario --runs $(RUNS) --report target/lab/bench-$$scenario.json || exit 1; \
	done

# One thread each, on one core. PyTorch is used where PYTHON has it: $(PYTHON) -m pip install torch numpy (several GB).
bench-lstm: build ## the LSTM's speed alone
	@mkdir -p target/lab
	@RAYON_NUM_THREADS=1 OMP_NUM_THREADS=1 taskset -c $(CORE) $(TRAINER) bench-lstm --python "$(PYTHON)" --report target/lab/bench-lstm.json

chaos: build ## break everything once under load, then FAULTS=100 times at random; the ledger decides (root: sudo make chaos)
	@mkdir -p target/lab
	@$(BINARY) lab chaos --faults $(FAULTS) --report target/lab/chaos.json $(CHAOS)

lab: build ## start the lab and leave it running
	@$(BINARY) lab up

lab-down: ## stop the lab and remove it
	@if [ -x "$(BINARY)" ]; then "$(BINARY)" lab down; else cargo run --release --locked --quiet -- lab down; fi
