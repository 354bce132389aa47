PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

.PHONY: setup demo test reproduce bench docs lint clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs,tensorboard]'
	@touch $@

demo: setup
	@$(BIN)/invertible demo --out runs/demo

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

reproduce: setup
	$(BIN)/python -m pytest -m reproduce --timeout 7200

bench: setup
	@mkdir -p runs/bench
	$(BIN)/pip install --quiet --constraint constraints.txt '.[bench]'
	$(BIN)/pip install --quiet linear_operator opt-einsum einops tqdm
	$(BIN)/pip install --quiet --no-deps memcnn einconv curvlinops-for-pytorch
	@for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python $$script --json runs/bench/$$(basename $$script .py).json || exit 1; done

docs: setup
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf .venv docs/_build docs/gallery .pytest_cache .ruff_cache .hypothesis
