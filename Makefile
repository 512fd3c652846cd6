# Two targets do everything on a machine that has Python 3.11+ and make: `make demo` and `make test`. `make quick` is
# for those who change something: the tests that start no process, no Ray and no browser, in two minutes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_NODES ?= train=1x1,cpu=1x1

RAY ?= 2.59
OTHER := .venv-ray-$(RAY)

.PHONY: demo test test-ray quick lint audit hooks install-demo install-test freeze clean

demo: install-demo
	$(BIN)/raytrain sample-data digits data/digits
	$(BIN)/raytrain train launch/digits.yaml --nodes $(DEMO_NODES)

test: quick $(BIN)/prometheus $(BIN)/chromium $(BIN)/tmux
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m "not pure and not ray and not hosts" -n auto
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m "ray and not hosts" -n 2 --dist loadfile
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m hosts

quick: install-test lint
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m pure -n auto

# The real program for the tests that collect metrics, unpacked and not installed; they are skipped where it is not to be had.
$(BIN)/prometheus: | install-test
	cd $(VENV) && (apt-get download prometheus || (apt-get update && apt-get download prometheus)) >/dev/null 2>&1 \
	  && dpkg-deb -x prometheus_*.deb prometheus && ln -sf ../prometheus/usr/bin/prometheus bin/prometheus \
	  || echo "no Prometheus: Debian's package could not be fetched"

# The browser and the terminal that tests look with, from Debian where we may install it; they are skipped elsewhere.
$(BIN)/chromium $(BIN)/tmux: | install-test
	command -v $(@F) >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y \
	  --no-install-recommends $(@F); } >/dev/null 2>&1; \
	  ln -s "$$(command -v $(@F))" $@ || echo "no $(@F): Debian's package could not be installed"

# The main path through Ray's public API alone (`both_ways`: whole runs, kills, stops, a cluster that is there, simulated
# hosts), of which `make test` runs two short ones. Then another release of Ray, in an environment of its own: what
# raytrain knows of Ray's own parts, the feed, and the main path in both ways.
test-ray: $(OTHER)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m both_ways --both-ways -k public tests
	PATH="$(CURDIR)/$(OTHER)/bin:$$PATH" $(OTHER)/bin/python -m pytest tests/ray_internals tests/data/test_feed.py
	PATH="$(CURDIR)/$(OTHER)/bin:$$PATH" $(OTHER)/bin/python -m pytest -m both_ways --both-ways tests

$(OTHER)/.installed: pyproject.toml constraints.txt | install-test
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	grep -v '^ray==' constraints.txt > $(OTHER)/constraints.txt
	$(BIN)/uv pip install --python $(OTHER)/bin/python --constraint $(OTHER)/constraints.txt 'ray~=$(RAY).0' --editable '.[test]'
	$(OTHER)/bin/python -m compileall -q -j 0 $(OTHER)/lib >/dev/null 2>&1 || true
	touch $@

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: install-test  # what is known to be vulnerable of constraints.txt; fails where the service on the internet does not answer
	$(BIN)/uv pip install --quiet --python $(BIN)/python pip-audit
	$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r constraints.txt

hooks: install-test  # before every commit
	$(BIN)/pre-commit install

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
	rm -rf $(VENV) .venv-ray-* data runs
