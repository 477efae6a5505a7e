# `make demo` and `make test` work on a fresh machine with Python >= 3.11 and nothing else.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	done)
BIN := .venv/bin

.PHONY: demo test lint notebooks clean

demo: .venv/installed
	$(BIN)/python scripts/train_deep_kmeans.py --data digits --hidden 128 128 512 \
		--augment affine --pretrain-epochs 150 --epochs 50 --out runs/demo --overwrite

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Runs every notebook from its source and stores it with its outputs.
notebooks: .venv/installed
	$(BIN)/python notebooks/execute.py

.venv/installed: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "expected Python >= 3.11 on the PATH, found none"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs build *.egg-info
