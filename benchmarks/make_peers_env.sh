#!/bin/sh
# Builds .venv-peers at the repository root: shotnoise as it stands in this tree, and the libraries it is compared with.
# PYTHON=python3.12 sh benchmarks/make_peers_env.sh chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."

"${PYTHON:-python3}" -m venv .venv-peers
.venv-peers/bin/python -m pip install --quiet torch==2.13.0 packaging --editable .
.venv-peers/bin/python -m pip install --quiet --no-deps --requirement benchmarks/requirements-peers.txt
.venv-peers/bin/python - <<'CHECK'
import importlib.util

import backpack.extensions
import curvlinops
import nngeometry.gram
import opacus.grad_sample
import torch

assert importlib.util.find_spec("torchvision") is None, "torchvision came along; the comparison should run without it"
print(f"ready: torch {torch.__version__} and four peers in .venv-peers")
CHECK
