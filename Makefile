# Two commands do all the set-up: `make demo` and `make test`. Each makes .venv if it is not there.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
DEMO   ?=
PYTEST ?= -n 2 --dist loadfile
SOAK   ?=

.PHONY: demo test test-slow soak lint types wheel benchmarks clean
.DELETE_ON_ERROR:

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/pcrl demo $(DEMO)

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(PYTEST)

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow $(PYTEST)

soak: $(VENV)/.ready
	$(BIN)/python -m benchmarks.reliability --write docs/reliability.md $(SOAK)

lint: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

wheel: $(VENV)/.ready
	rm -rf dist && $(BIN)/python -m build --wheel -q

benchmarks: $(VENV)/.ready
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info
