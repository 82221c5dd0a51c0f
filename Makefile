# Limner. `make demo` does the main job; `make test` checks everything. Both make .venv themselves.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
EXTRAS := dev
STAMP  := $(VENV)/.installed

.PHONY: demo test lint bench install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -e '.[$(EXTRAS)]' -c constraints.txt
	$(BIN)/limner world sample --identities 1 --size 64 --out $(VENV)/first.png  # compiles the renderer once
	touch $@

demo: $(STAMP)
	$(BIN)/limner demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

bench: $(STAMP)
	@for f in benchmarks/bench_*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

clean:
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache
