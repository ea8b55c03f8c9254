# Each target does everything: it makes .venv when it is missing and installs what it needs
# (with uv when it is on the PATH, with pip otherwise), then runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TASKS := classification segmentation visual-place-recognition low-light-action-recognition

.PHONY: demo test test-oldest lint bench reliability docs clean

demo: $(STAMP)
	$(BIN)/python demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy darkening media minmax scenes reproduction demo.py reproduce.py
	for task in $(TASKS); do (cd $$task && MYPYPATH=..:. ../$(BIN)/mypy --config-file ../pyproject.toml .) || exit 1; done

# The oldest versions that requirements.txt allows, in an environment of its own; needs uv.
test-oldest:
	uv venv --allow-existing --python 3.11 .venv-oldest
	uv pip install --python .venv-oldest/bin/python --resolution lowest-direct -r requirements.txt -e '.[dev]'
	.venv-oldest/bin/python -m pytest -n auto --dist worksteal -q

# Every row of the table of faults, tried in full; writes docs/reliability.md.
reliability: $(STAMP)
	RELIABILITY=docs/reliability.md $(BIN)/python -m pytest -n auto --dist worksteal -q tests/faults

# The documentation as a site, in site/.
docs: $(STAMP)
	if command -v uv >/dev/null; then uv pip install -q --python $(BIN)/python -e '.[docs]'; \
	else $(BIN)/python -m pip install -q -e '.[docs]'; fi
	$(BIN)/python -m mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python benchmarks/bench.py

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
	  { echo "error: $(PYTHON) is older than 3.11.4; name a newer one: make PYTHON=python3.12 ..." >&2; exit 2; }
	if command -v uv >/dev/null; then \
	  uv venv --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install --python $(BIN)/python -r requirements.txt -e '.[dev]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install -r requirements.txt -e '.[dev]'; \
	fi
	touch $(STAMP)

clean:
	rm -rf $(VENV) .venv-oldest site .mypy_cache .pytest_cache .ruff_cache *.egg-info
