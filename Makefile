# Everything in the virtual environment .venv; `make demo` and `make test` are all the set-up there is.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo cluster test test-faults test-data check format bench

demo: $(READY)  ## make images and a small Stable Diffusion, fine-tune it here, show before and after
	$(BIN)/lockstep demo demo

cluster: $(READY)  ## a real SLURM cluster of four nodes on this machine, to try things on
	$(BIN)/lockstep lab up

test: $(READY)  ## all tests but the long ones; those of SLURM bring up a cluster of their own, as root
	$(BIN)/python -m pytest

test-faults: $(READY)  ## the long fault runs: kills everywhere, every shape to every shape, nodes that die
	$(BIN)/python -m pytest -m faults

test-data: $(READY)  ## strangers' images, 290 MB from Debian, through the sources, the index and the buckets
	$(BIN)/python -m pytest -m data

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
	$(BIN)/python -m bench.peer
	$(BIN)/python -m bench.peer_parts
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench.data
	$(BIN)/python -m bench.checkpoint
	$(BIN)/python -m bench.status

$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Lockstep needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
