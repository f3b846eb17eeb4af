# Everything in the virtual environment .venv; `make demo` and `make test` are all the set-up there is.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-faults check format bench

demo: $(READY)  ## make images and a small Stable Diffusion, fine-tune it here, show before and after
	$(BIN)/lockstep demo demo

test: $(READY)  ## all tests that need neither GPU nor SLURM
	$(BIN)/python -m pytest

test-faults: $(READY)  ## the long fault runs: kills everywhere, every shape to every shape
	$(BIN)/python -m pytest -m faults

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## the measurements; each is also a command of its own
	$(BIN)/python -m bench.launcher
	$(BIN)/python -m bench.step
	$(BIN)/python -m bench.checkpoint
	$(BIN)/python -m bench.status

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Lockstep needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
