"""A small ensemble that takes a second or two, as a script: python ensemble_case.py STORE [shard i N] [workers k]."""

import sys

import torch

import shotnoise as sn

RUNS, BLOCK = 96, 8


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + 0.1 * torch.randn(20, 1, generator=generator)
    torch.manual_seed(1)
    return sn.Problem(torch.nn.Linear(3, 1, dtype=torch.float64), "mse", x, y)


def settings(steps=400):
    return {
        "optimizer": sn.rules.SGD(0.05, momentum=0.5),
        "batch_size": [2, 5],
        "steps": steps,
        "runs": RUNS,
        "record": ["loss", "gradient_variance"],
        "every": 10,
        "block": BLOCK,
    }


def run(store=None, steps=400, **how):
    return sn.simulate(problem(), **settings(steps), store=store, **how)


if __name__ == "__main__":
    options = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    how = {}
    if "shard" in options:
        how["shard"] = tuple(int(part) for part in options["shard"].split("/"))
    how["workers"] = int(options.get("workers", 1))
    print("start", flush=True)
    run(sys.argv[1], int(options.get("steps", 400)), progress=lambda s: print("runs", s.runs, flush=True), **how)
