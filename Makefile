# Two commands do all the set-up: `make demo` and `make test`. Both make .venv when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

PEERS := .venv-peers/.ready

.PHONY: peers demo test soak check fix docs clean

demo: $(READY)  ## train, evaluate and print the built-in suite
	$(BIN)/panscope train demo

test: $(READY)  ## the quick tests
	$(BIN)/pytest

soak: $(READY)  ## the slow tests
	$(BIN)/pytest -m soak

check: $(READY)  ## format, lint, types, floors: what CI and pre-commit run
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

fix: $(READY)  ## format and repair what can be repaired
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)  ## the documentation site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

peers: $(PEERS)  ## other tools' own readers, in a second environment: tests/formats compares with them

clean:
	rm -rf .venv .venv-peers

# torch first and alone: another package that pulls torch would choose a build of its own.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "pip>=25.1"
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

# dictionary-learning asks for an old transformers that its dictionaries do not need: it comes without its dependencies.
$(PEERS): tests/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet torch==2.13.0
	.venv-peers/bin/python -m pip install --quiet --requirement tests/peers.txt
	.venv-peers/bin/python -m pip install --quiet --no-deps dictionary-learning==0.1.0
	touch $@
