# The few commands there are. Each builds the environment it needs.
# The first of these that runs and is new enough; make PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN = .venv/bin
READY = .venv/.ready
NATIVE = .venv/.native
PIP = -m pip install --quiet --disable-pip-version-check
PINNED = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt

help:           ## this list
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' Makefile | expand -t 16

demo: $(READY)  ## train a small network, measure its gradient noise on the way, write demo/report.html
	@mkdir -p demo
	$(BIN)/shotnoise measure --data digits --model mlp:64,32 --batch-sizes 1,8,64,512 --at 0,10,100,1000 \
	  --learning-rate 0.1 --draws 400 --top 20 --report demo/report.html --json demo/result.json

test: $(NATIVE)  ## the whole test suite, the slow statistical checks excepted
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(NATIVE) ## the slow statistical checks
	$(BIN)/python -m pytest -n 2 -m slow

test-sanitizers: .venv-sanitized/.ready ## the tests of the kernel under AddressSanitizer and UndefinedBehaviorSanitizer
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  .venv-sanitized/bin/python -m pytest -q -m "not slow" tests/simulate/test_native.py

# Without ruff's cache: it remembers how imports were sorted from before a neighbouring file came or went.
lint: $(READY)  ## format, lint and types, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy

format: $(READY) ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --no-cache --fix .

bench: .venv-peers/.ready ## CPU time and memory beside other libraries (an hour)
	.venv-peers/bin/python benchmarks/per_sample.py
	.venv-peers/bin/python benchmarks/memory.py
	.venv-peers/bin/python benchmarks/ensembles.py
	.venv-peers/bin/python benchmarks/regression.py --large
	.venv-peers/bin/python benchmarks/propagation.py
	.venv-peers/bin/python benchmarks/optim.py
	.venv-peers/bin/python benchmarks/diffusion.py
	.venv-peers/bin/python benchmarks/curvature.py

bench-mnist: .venv-peers/.ready ## a full pass over MNIST; needs SHOTNOISE_DATA
	.venv-peers/bin/python benchmarks/full_pass.py

clean:          ## remove what the commands above have built
	rm -rf .venv .venv-peers .venv-sanitized demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; install one, or run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not Python 3.11 or newer; run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv --clear .venv || \
	  { echo "$(PYTHON) cannot make virtual environments; install its venv package (python3-venv on Debian)"; exit 1; }
	$(PINNED) $(BIN)/python $(PIP) --editable '.[dev]'
	@touch $@ $(NATIVE)

# The kernel again when its sources have changed; nothing is built on import.
$(NATIVE): $(READY) CMakeLists.txt $(wildcard src/native/*)
	$(PINNED) $(BIN)/python $(PIP) --no-deps --editable .
	@touch $@

# The packages of .venv, but a kernel of its own.
.venv-sanitized/.ready: $(NATIVE)
	@$(PYTHON) -m venv --clear .venv-sanitized
	@$(BIN)/python -c 'import site; print(*site.getsitepackages(), sep="\n")' > \
	  "$$(.venv-sanitized/bin/python -c 'import site; print(site.getsitepackages()[0])')/packages.pth"
	$(PINNED) .venv-sanitized/bin/python $(PIP) --no-deps --config-settings=cmake.define.SHOTNOISE_SANITIZE=ON .
	.venv-sanitized/bin/python -c 'import shotnoise._native'  2>&1 | grep -qi asan  # it is there, and wants its library
	@touch $@

.venv-peers/.ready: benchmarks/requirements-peers.txt benchmarks/make_peers_env.sh pyproject.toml
	sh benchmarks/make_peers_env.sh
	@touch $@

.PHONY: help demo test test-slow test-sanitizers lint format bench bench-mnist clean
