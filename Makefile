# `make demo` and `make test` do all the set-up: both make .venv when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers/.ready
PIP := pip==26.3

# torch is installed first and alone, as its build depends on the machine: another package that pulls torch would choose
# one. Everything else comes from a lock file with hashes.
TORCH := 2.13.0
TORCH_NEWEST ?= torch
TORCH_OLDEST ?= torch==2.11.0

PARALLEL := --numprocesses auto --dist loadfile

# The tests that use other libraries' interfaces.
OUTSIDE := tests/lms tests/intervene tests/loading tests/data tests/publishing tests/formats tests/storage tests/coders \
	tests/cli/test_train_and_eval.py tests/cli/test_rollouts_verb.py tests/cli/test_import_export.py \
	tests/activations/store/test_remote_store.py tests/reporting/test_report_verb.py tests/geometry/test_projection.py

.PHONY: demo test soak check fix docs peers update test-newest test-oldest clean

demo: $(READY)  ## train, evaluate and print the built-in suite
	$(BIN)/panscope train demo

test: $(READY)  ## the quick tests, a process a core, each with one thread
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) $(PYTEST)

soak: $(READY)  ## the slow tests, likewise
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) -m soak

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

update:  ## renew requirements/*.txt: the newest releases that pyproject.toml allows
	test -x .venv-lock/bin/uv || ($(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet uv)
	.venv-lock/bin/python tools/lock.py $(TORCH)

test-newest:  ## the tests that touch other libraries, with the newest releases that pyproject.toml allows
	rm -rf .venv-newest && $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet "$(PIP)"
	.venv-newest/bin/python -m pip install --quiet "$(TORCH_NEWEST)"
	.venv-newest/bin/python -m pip install --quiet --editable ".[all]" --group test
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest $(PARALLEL) -p tests.support.dependency_report $(OUTSIDE)

test-oldest:  ## the same with the lowest versions that pyproject.toml declares
	rm -rf .venv-oldest && $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet "$(PIP)"
	.venv-oldest/bin/python -m pip install --quiet "$(TORCH_OLDEST)"
	.venv-oldest/bin/python -m pip install --quiet --require-hashes --no-deps --requirement requirements/oldest.txt
	.venv-oldest/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest $(PARALLEL) -p tests.support.dependency_report $(OUTSIDE)

clean:
	rm -rf .venv .venv-peers .venv-lock .venv-newest .venv-oldest

$(READY): pyproject.toml requirements/locked.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "the locked releases are for Python 3.11 to 3.13, and this is " + sys.version.split()[0] + ": give another by PYTHON=python3.13")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(PIP)"
	$(BIN)/python -m pip install --quiet torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements/locked.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# dictionary-learning asks for an old transformers that its dictionaries do not need: it comes without its dependencies.
$(PEERS): requirements/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet "$(PIP)"
	.venv-peers/bin/python -m pip install --quiet torch==$(TORCH)
	.venv-peers/bin/python -m pip install --quiet --require-hashes --no-deps --requirement requirements/peers.txt
	.venv-peers/bin/python -m pip install --quiet --no-deps dictionary-learning==0.1.0
	touch $@
