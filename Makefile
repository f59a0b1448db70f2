# Every target does all of its own set-up.

CARGO ?= cargo
# Handed on: make demo ARGS=--stay, make test ARGS=fence
ARGS ?=
# Where the Python example and the checks of deploy/ are tried, and what they need.
VENV := target/venv
PYTHON_NEEDS := examples/api/requirements.txt tests/deploy/requirements.txt
# Where the Node example's packages are for the tests
NODE := target/node
# How many times as much as in the tests, and for how long
TIMES ?= 50
SECONDS ?= 600
# Entries and tasks worked off, and workers killed; where they are empty, TIMES says
ENTRIES ?=
KILLS ?=
# For how long `make prove` searches each of some forty scenarios
PROVE ?= 60
# With a value, `make bench` compares with other programs
PEERS ?=
# How many simulated worlds `make simulate` runs, from seed FIRST on
SEEDS ?= 1000
FIRST ?= 1

# The simulated worlds of `make test`
SIMULATED ?= 30
# The tests of `make topologies`, by the beginning of their names
ON_TOPOLOGIES ?= consistency:: invalidation::
# The whole workspace is built together: features are unified over it, so each crate is built once. The allocator of
# releases is left out, since its build takes minutes.
TESTED := --workspace --no-default-features --features worker

# What runs tests: nextest is not everywhere.
RUN = $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo nextest run || echo test)

.PHONY: help setup build demo test topologies matrix torture prove simulate lint lint-library formatted ci deny \
	bench clean
.DEFAULT_GOAL := help

help: ## Say what there is
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "make %-8s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install redis-server, if there is neither it nor valkey-server, and look for Rust
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: see https://rustup.rs" >&2; exit 1; }
	@./scripts/install-redis.sh

build: ## Build for production: target/release/samovar
	$(CARGO) build --release --locked

demo: setup ## Watch it work for a minute, with a Redis of its own: make demo ARGS=--stay
	$(CARGO) run --profile demo --locked --no-default-features --features worker -- demo $(ARGS)

test: setup $(VENV)/installed $(NODE)/installed ## Run all tests, on Redis servers that they start themselves
	@./scripts/install-faketime.sh
	@./scripts/install-chromium.sh
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; export SAMOVAR_SIMULATED_SEEDS=$(SIMULATED); \
		$(CARGO) nextest run --locked --no-fail-fast $(TESTED) $(ARGS) && $(CARGO) test --locked $(TESTED) --doc; \
	else \
		set -x; export SAMOVAR_SIMULATED_SEEDS=$(SIMULATED); \
		$(CARGO) test --locked --no-fail-fast $(TESTED) $(ARGS); \
	fi

# Side by side, since they mostly wait.
topologies: setup ## Run the tests of consistency and invalidation on Clusters and behind Sentinels
	@./scripts/install-faketime.sh
	@set -e; all=; for topology in cluster sentinel; do \
		SAMOVAR_TEST_TOPOLOGY=$$topology $(CARGO) $(RUN) --locked --no-fail-fast $(TESTED) --test all \
			-- $(ON_TOPOLOGIES) & all="$$all $$!"; \
	done; for one in $$all; do wait $$one; done

matrix: setup $(VENV)/installed $(NODE)/installed
matrix: ## Run the tests of the worker and the library on Redis 8, Valkey 8 and Valkey 9 as well
	@./scripts/install-faketime.sh
	@./scripts/fetch-servers.sh
	@set -e; for server in redis-8 valkey-8 valkey-9; do \
		echo "== $$server" >&2; \
		PATH="$(CURDIR)/target/servers/$$server/bin:$$PATH" $(CARGO) $(RUN) --locked --no-fail-fast $(TESTED) \
			--test all $(ARGS); \
	done

# Without Python there is no such file, and the tests that use it say what they leave out.
$(VENV)/installed: $(PYTHON_NEEDS)
	@if python3 -c 'import ensurepip, venv' 2>/dev/null; then \
		set -ex; python3 -m venv --clear $(VENV); \
		$(VENV)/bin/pip install --quiet --disable-pip-version-check $(addprefix --requirement ,$^); touch $@; \
	else \
		echo "python3 or its module venv is missing: the example in Python and the schemas of deploy/ are not tried" >&2; \
	fi

$(NODE)/installed: examples/node/package.json examples/node/package-lock.json
	@mkdir -p $(NODE); rm -f $@; cp $^ $(NODE); \
	if ! npm --version >/dev/null 2>&1; then \
		echo "npm is missing: the example in Node is not tried" >&2; \
	elif npm ci --prefix $(NODE) --no-audit --no-fund --fetch-retries 1 --fetch-timeout 20000; then \
		touch $@; \
	else \
		echo "npm cannot install what the example in Node needs, as it says above: the example is not tried" >&2; \
	fi

torture: setup ## Long runs with faults: make torture TIMES=50 SEED=7 SECONDS=600 ENTRIES=1000000 KILLS=300
	@./scripts/install-faketime.sh
	SAMOVAR_TORTURE=$(TIMES) SAMOVAR_TEST_SECONDS=$(SECONDS) $(if $(SEED),SAMOVAR_TEST_SEED=$(SEED)) \
		$(if $(ENTRIES),SAMOVAR_TORTURE_ENTRIES=$(ENTRIES)) $(if $(KILLS),SAMOVAR_TORTURE_KILLS=$(KILLS)) \
		$(CARGO) test --profile bench --locked --test all -- \
		faults:: consistency:: lag:: --nocapture --test-threads 2 $(ARGS)

prove: setup ## Search the interleavings of the Lua scripts and of gap detection: make prove PROVE=600 SEED=7
	SAMOVAR_MODEL_WALKS=200 $(CARGO) test --locked --package samovar-model -- --nocapture
	$(CARGO) run --locked --package samovar-model --bin prove -- $(PROVE) $(SEED)
	$(CARGO) run --locked --package samovar-model --bin knowledge -- $(PROVE)

simulate: ## Run fleets of real workers in simulated worlds: make simulate SEEDS=10000 FIRST=1
	$(CARGO) run --profile bench --locked --package samovar-simulator -- $(SEEDS) $(FIRST)

lint: formatted ## Check formatting, lints and documentation; warnings are errors here
	$(CARGO) clippy --locked $(TESTED) --all-targets -- -D warnings
	@$(MAKE) --no-print-directory lint-library

formatted:
	@$(CARGO) fmt --version >/dev/null 2>&1 && $(CARGO) clippy --version >/dev/null 2>&1 \
		|| rustup component add rustfmt clippy
	$(CARGO) fmt --all --check

# Clippy's driver compiles the workspace, so that the tests and the lints need one build.
# What can be had must be tried here: see scripts/install-chromium.sh.
LINTED := SAMOVAR_TEST_ALL=on CARGO_PROFILE_DEV_DEBUG=none RUSTC_WORKSPACE_WRAPPER=clippy-driver RUSTFLAGS="-D warnings"
ci: formatted ## Run what `make test lint` does, in less time
	$(LINTED) $(CARGO) build --locked $(TESTED) --all-targets
	@# The tests wait for servers a fifth of their time; the lints fill it. Cargo compiles for one of the two at a
	@# time, so the tests begin first.
	@set -e; log=target/lint-library.log; \
	(sleep 60; $(LINTED) nice $(MAKE) --no-print-directory lint-library) >$$log 2>&1 & linting=$$!; \
	code=0; $(LINTED) $(MAKE) --no-print-directory test || code=1; \
	wait $$linting || code=1; cat $$log; exit $$code

# What the other packages of the workspace lend to the library, it must do without: rustdoc compiles it with the worker.
lint-library:
	$(CARGO) clippy --locked --package samovar --no-default-features --lib -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --package samovar --no-default-features --features worker --no-deps

deny: ## Check licences, known vulnerabilities, and where crates come from; builds cargo-deny if there is none
	@CARGO="$(CARGO)" ./scripts/install-cargo-deny.sh
	$(CARGO) deny --locked check

bench: setup ## Measure the worker and the library against bare loops; PEERS=1: the worker against BullMQ and wrk
ifeq ($(PEERS),)
	$(CARGO) bench --locked --benches -- $(ARGS)
else
	@./scripts/install-peers.sh
	$(CARGO) bench --locked --bench throughput -- $(or $(ARGS),3 plain,fenced,whole,bulk,set,bullmq,wrk)
endif

clean: ## Remove what was built
	$(CARGO) clean
