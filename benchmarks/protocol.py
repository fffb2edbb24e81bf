"""How things are timed and on what machine: CPU time, warm-up, methods interleaved, the minimum counts."""

import gc
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
SLOW = 0.5  # seconds; a slower method takes part in the first `FEWEST` rounds only
FEWEST = 5
PACKAGES = (
    "shotnoise",
    "torch",
    "numpy",
    "backpack-for-pytorch",
    "opacus",
    "nngeometry",
    "curvlinops-for-pytorch",
    "hessian-eigenthings",
    "PyHessian",
    "jax",
    "jaxlib",
    "torchsde",
)


def cpu_seconds(methods: Mapping[str, Callable[[], Any]], rounds: int = 15) -> dict[str, list[float]]:
    """CPU seconds of each call; see `clocked`."""
    return {name: [cpu for cpu, _ in calls] for name, calls in clocked(methods, rounds).items()}


def clocked(methods: Mapping[str, Callable[[], Any]], rounds: int = 15) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of each call: two warm-up calls, then `rounds` rounds with one turn for every method.

    Each round begins with another method. A turn of a fast method is an untimed call and a timed one: after a method
    that takes gigabytes, the next one would pay for memory that was given back to the system. The garbage collector
    runs between the calls, never inside one.
    """
    if rounds < FEWEST:
        raise ValueError(f"rounds={rounds}: the minimum of fewer than {FEWEST} calls says little")
    warm_up = {name: min(_call(method), _call(method))[0] for name, method in methods.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    names = list(methods)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            if warm_up[name] < SLOW:
                methods[name]()
            elif turn >= FEWEST:
                continue
            taken[name].append(_call(methods[name]))
    return taken


def _call(method: Callable[[], Any]) -> tuple[float, float]:
    gc.collect()
    gc.disable()
    try:
        start, wall = time.process_time(), time.perf_counter()
        method()
        return time.process_time() - start, time.perf_counter() - wall
    finally:
        gc.enable()


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, cores, versions, threads, date."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def save(name: str, content: Mapping[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **content}, indent=2) + "\n")
    return path


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
