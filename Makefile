# Two commands: `make dev` and `make test`. The rest is for those who change Lastword.
SHELL := /bin/bash
.DELETE_ON_ERROR:

AGENTS ?= examples/agents.yaml
# Where cargo puts what it builds for this machine; see .cargo/config.toml.
BUILT = target/$(shell rustc --print host-tuple)/debug
# For `make image`: a static binary.
BINARY ?= $(BUILT)/lastword
IMAGE ?= localhost/lastword:dev

.PHONY: dev test demo lint fmt generate bench cluster cluster-down image tools help

dev: tools ## Run everything on this machine: Postgres, gateway, controller, workers; then chat
	cargo build --locked
	ln -sfn ../$(BUILT)/lastword target/lastword
	exec target/lastword dev --agents $(AGENTS) $(ARGS)

test: tools ## Pass all tests
	tests/run

demo: ## On a local Kubernetes: a pod dies mid-answer and the client names the cause; a gateway dies and the stream goes on byte-exact
	scripts/demo

lint: ## What CI checks before the tests
	cargo fmt --check
	cargo clippy --locked --all-targets --test kubernetes -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --lib --document-private-items
	scripts/chart-files --check
	scripts/unused-dependencies
	scripts/deny

fmt: ## Format
	cargo fmt

generate: ## Write what is generated and committed: crds/, the chart's copies, the API's description and its types
	LASTWORD_WRITE_CRDS=1 LASTWORD_WRITE_OPENAPI=1 cargo test --locked --lib the_committed
	scripts/chart-files
	scripts/client-types

bench: ## Measure turns/s and latency beside raw Postgres
	benches/run

cluster: ## Start a Kubernetes of two nodes on this machine (Linux, root), for tests and to try things
	tests/cluster/cluster up

cluster-down: ## End it and leave nothing
	tests/cluster/cluster down

image: ## Write the container image from BINARY, a static build: target/lastword.tar
	scripts/lastword-image $(BINARY) target/lastword.tar $(IMAGE)

tools:
	@scripts/prerequisites

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort
