# The entry points of this repository. `make help` lists them.

BINARY := $(or $(CARGO_TARGET_DIR),target)/release/stormglass
TRAINER := $(BINARY)-train
PYTHON ?= python3
CORE ?= 0
RUNS ?= 10
SECONDS ?= 3600
SEED ?= $(shell date +%s)000
FAULTS ?= 100
EACH ?= 60
TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))

.DEFAULT_GOAL := help
.PHONY: help setup build demo test fuzz fuzz-api soak bench bench-lstm bench-status bench-clusters chaos lab lab-down

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

# Needs a nightly compiler and cargo-fuzz: rustup toolchain install nightly, cargo install cargo-fuzz. What is found stays in fuzz/artifacts.
fuzz: setup ## fuzz every parser of what a network or a user sent, each for EACH=60 seconds; TARGETS="webhook …" chooses
	@for target in $(TARGETS); do \
		mkdir -p fuzz/corpus/$$target && \
		cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(EACH) -timeout=10 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1 || exit 1; \
	done

fuzz-api: setup ## ask a real controller whatever its OpenAPI document allows and forbids, by chance for EACH=60 seconds
	SCHEMATHESIS_SECONDS=$(EACH) SCHEMATHESIS_SEED=$(SEED) cargo test --locked --test lab_scenarios schemathesis -- --nocapture

bench: build ## the LSTM's speed against candle_nn's and PyTorch's; failover times, median and greatest of RUNS=10 runs each
	@mkdir -p target/lab
	@$(MAKE) --no-print-directory bench-lstm bench-status bench-clusters
	@for scenario in kill-primary hang-primary switchover; do \
		$(BINARY) lab run $$scenario --runs $(RUNS) --report target/lab/bench-$$scenario.json || exit 1; \
	done

# As services, controller and agents raise their sessions; in the lab they and the requests share one, which is raised here where root may.
bench-status: build ## RUNS=10 failovers alone, and RUNS under 5,000 status requests a second, the controller on one core and the requests from another
	@mkdir -p target/lab
	@setsid -w sh -c 'echo -10 2>/dev/null > /proc/self/autogroup; exec "$$@"' sh \
		$(BINARY) lab run kill-primary --runs $(RUNS) --status-rate 5000 --report target/lab/bench-status.json

bench-clusters: setup ## one controller with CLUSTERS=1000 clusters of three simulated nodes that report once a second: cores and memory
	@CLUSTERS=$(or $(CLUSTERS),1000) SECONDS=60 cargo bench --locked --bench clusters

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
