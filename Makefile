# The few commands there are. Each builds the environment it needs.
# The first of these that runs and is new enough; make PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN = .venv/bin
READY = .venv/.ready

help:           ## this list
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' Makefile | expand -t 16

demo: $(READY)  ## train a small network, measure its gradient noise on the way, write demo/report.html
	@mkdir -p demo
	$(BIN)/shotnoise measure --data digits --model mlp:64,32 --batch-sizes 1,8,64,512 --at 0,10,100,1000 \
	  --learning-rate 0.1 --draws 400 --top 20 --report demo/report.html --json demo/result.json

test: $(READY)  ## the whole test suite, the slow statistical checks excepted
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(READY) ## the slow statistical checks
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(READY)  ## format, lint and types, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv-peers/.ready ## CPU time and memory beside other libraries (half an hour)
	.venv-peers/bin/python benchmarks/per_sample.py
	.venv-peers/bin/python benchmarks/memory.py
	.venv-peers/bin/python benchmarks/ensembles.py
	.venv-peers/bin/python benchmarks/regression.py --large

bench-mnist: .venv-peers/.ready ## a full pass over MNIST; needs SHOTNOISE_DATA
	.venv-peers/bin/python benchmarks/full_pass.py

clean:          ## remove what the commands above have built
	rm -rf .venv .venv-peers demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; install one, or run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not Python 3.11 or newer; run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv --clear .venv || \
	  { echo "$(PYTHON) cannot make virtual environments; install its venv package (python3-venv on Debian)"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv-peers/.ready: benchmarks/requirements-peers.txt benchmarks/make_peers_env.sh pyproject.toml
	sh benchmarks/make_peers_env.sh
	@touch $@

.PHONY: help demo test test-slow lint format bench bench-mnist clean
