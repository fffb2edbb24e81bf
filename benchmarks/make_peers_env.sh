#!/bin/sh
# Builds .venv-peers at the repository root: shotnoise as it stands in this tree, and the libraries it is compared with.
# PYTHON=python3.12 sh benchmarks/make_peers_env.sh chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."

"${PYTHON:-python3}" -m venv .venv-peers
.venv-peers/bin/python -m pip install --quiet torch==2.13.0 packaging --editable .
.venv-peers/bin/python -m pip install --quiet --no-deps --requirement benchmarks/requirements-peers.txt
# JAX with what it needs, but on the numpy, scipy and torch that are there: they are held at their versions.
.venv-peers/bin/python -m pip freeze --exclude-editable >.venv-peers/held.txt
.venv-peers/bin/python -m pip install --quiet --constraint .venv-peers/held.txt jax==0.10.2
.venv-peers/bin/python - <<'CHECK'
import importlib.util

import backpack.extensions
import curvlinops
import hessian_eigenthings
import jax
import nngeometry.gram
import opacus.grad_sample
import pyhessian
import torch

assert importlib.util.find_spec("torchvision") is None, "torchvision came along; the comparison should run without it"
print(f"ready: torch {torch.__version__}, six peers and jax {jax.__version__} in .venv-peers")
CHECK
