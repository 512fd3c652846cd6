# Two targets do everything on a machine that has Python 3.11+ and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_NODES ?= train=1x1,cpu=1x1

.PHONY: demo test lint install-demo install-test freeze clean

demo: install-demo
	$(BIN)/raytrain sample-data digits data/digits
	$(BIN)/raytrain train launch/digits.yaml --nodes $(DEMO_NODES)

test: install-test lint
	$(BIN)/python -m pytest

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install-demo: $(VENV)/.installed-demo
install-test: $(VENV)/.installed-test

# uv resolves and installs in seconds where pip takes minutes; the environment itself keeps pip.
# Byte code is compiled once, because some machines set PYTHONDONTWRITEBYTECODE and then every start pays for it.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable '.[$*]'
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib raytrain >/dev/null 2>&1 || true
	touch $@

freeze:  # rewrite constraints.txt from what this environment resolved
	$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) data runs
