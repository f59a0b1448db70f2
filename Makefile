# Every target does all of its own set-up.

CARGO ?= cargo
# Handed on: make demo ARGS=--stay, make test ARGS=fence
ARGS ?=
# How many times as much as in the tests, and for how long
TIMES ?= 50
SECONDS ?= 600

.PHONY: help setup build demo test torture lint bench clean
.DEFAULT_GOAL := help

help: ## Say what there is
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "make %-7s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install redis-server, if there is neither it nor valkey-server, and look for Rust
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing: see https://rustup.rs" >&2; exit 1; }
	@./scripts/install-redis.sh

build: ## Build for production: target/release/samovar
	$(CARGO) build --release --locked

demo: setup ## Watch it work for a minute, with a Redis of its own: make demo ARGS=--stay
	$(CARGO) run --release --locked -- demo $(ARGS)

test: setup ## Run all tests, on Redis servers that they start themselves
	@./scripts/install-faketime.sh
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; $(CARGO) nextest run --locked --no-fail-fast $(ARGS) && $(CARGO) test --locked --doc; \
	else \
		set -x; $(CARGO) test --locked --no-fail-fast $(ARGS); \
	fi

torture: setup ## Kill, cut, starve and flood it for long: make torture TIMES=50 SEED=7 SECONDS=600
	@./scripts/install-faketime.sh
	SAMOVAR_TORTURE=$(TIMES) SAMOVAR_TEST_SECONDS=$(SECONDS) $(if $(SEED),SAMOVAR_TEST_SEED=$(SEED)) \
		$(CARGO) test --release --locked --test faults --test consistency -- --nocapture --test-threads 2 $(ARGS)

lint: ## Check formatting, lints and documentation; warnings are errors here
	@$(CARGO) fmt --version >/dev/null 2>&1 && $(CARGO) clippy --version >/dev/null 2>&1 \
		|| rustup component add rustfmt clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --lib -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

bench: setup ## Measure the worker and the cache library against bare loops and plain cache-aside, in one run
	$(CARGO) bench --locked --benches -- $(ARGS)

clean: ## Remove what was built
	$(CARGO) clean
