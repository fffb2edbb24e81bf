"""Leave the random number generators of the process as they were found."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever the block draws from the global generators (torch, CUDA, NumPy, random) is given back at its end."""
    torch_state, cuda_states = torch.get_rng_state(), _cuda_states()
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - theirs, not ours
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def random_fingerprint() -> tuple[object, ...]:
    """Differs from an earlier one if a global generator was drawn from in between."""
    algorithm, keys, *rest = np.random.get_state()  # noqa: NPY002
    torch_states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *_cuda_states())]
    return (*torch_states, algorithm, np.asarray(keys).tobytes(), *rest, random.getstate())


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
