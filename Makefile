# Each target does everything: it makes .venv when it is missing and installs what it needs
# (with uv when it is on the PATH, with pip otherwise), then runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TASKS := classification segmentation visual-place-recognition low-light-action-recognition

.PHONY: demo test lint bench clean

demo: $(STAMP)
	$(BIN)/python demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy darkening media minmax scenes demo.py reproduce.py
	for task in $(TASKS); do (cd $$task && MYPYPATH=..:. ../$(BIN)/mypy --config-file ../pyproject.toml .) || exit 1; done

bench: $(STAMP)
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

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
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
