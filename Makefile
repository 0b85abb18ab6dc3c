# make demo    assembles, trains, compares, saves, loads and generates, in about five minutes
# make test    lint-free test run in a fresh environment
# Both create .venv the first time and use it again afterwards.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench docs clean

$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel
	$(PIP) torch==2.13.0
	$(PIP) --no-build-isolation --editable .
	touch $@

$(VENV)/%: $(VENV)/base
	$(PIP) --no-build-isolation --editable .[$*]
	touch $@

demo: $(VENV)/base
	$(BIN)/python examples/demo.py

test: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist loadscope
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 --dist loadscope tests/plugins/fp8/kernels tests/plugins/moe/kernels tests/plugins/attention_mla/kernels

lint: $(VENV)/lint $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks.cpu
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.fp8

clean:
	rm -rf $(VENV) .links build *.egg-info
