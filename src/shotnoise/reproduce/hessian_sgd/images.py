"""Figures 3 and 4 (leading eigenspaces) and 21 and 22 (dynamics) on MNIST and CIFAR-10.

Networks of 3 to 6 hidden layers of 128 (MNIST) or 256 (CIFAR-10) from PyTorch's default first weights, which the text
does not say, learning rate 0.1, a few runs. The curvature is that of the loss on a fixed part of the training samples,
its second moment on the same; the presets say how many.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from shotnoise import results, simulate
from shotnoise.datasets import load
from shotnoise.measure import Curvature
from shotnoise.problem import Problem
from shotnoise.reproduce.hessian_sgd.dynamics import dynamics_drawn
from shotnoise.reproduce.hessian_sgd.made import claim, summarised
from shotnoise.reproduce.hessian_sgd.settings import network
from shotnoise.reproduce.hessian_sgd.subspaces import angles_drawn
from shotnoise.reproduce.hessian_sgd.workshop import Workshop
from shotnoise.reproduce.reproduction import Reproduction
from shotnoise.rules import SGD
from shotnoise.show.words import listing, number

RATE, LEADING = 0.1, 15
TOLERANCE, PROBES = 1e-3, 6  # of eigenpairs in single precision; random vectors for ||H||_F
LOOKS = (0.0, 0.3, 1.0)  # shares of the training at which the curvature is taken
RECORD = ["loss", "gradient_cosine", "minibatch_gradient_norm"]
WIDTH = {"mnist": 128, "cifar10": 256}
TITLE = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


class Images:
    """A fixed part of a data set of images, as long vectors."""

    def __init__(self, shop: Workshop, name: str) -> None:
        self.shop, self.name = shop, name
        self.count, self.runs, self.steps, self.sampled = shop.size.images
        self.runs = self.runs if shop.runs is None else shop.runs

    @cached_property
    def data(self) -> tuple[torch.Tensor, torch.Tensor]:
        data = load(self.name, data_dir=self.shop.data_dir)
        order = np.random.default_rng(self.shop.seed).permutation(len(data.inputs))[: self.count]
        some = torch.from_numpy(order)
        return data.inputs[some].flatten(1), data.targets[some]

    def problem(self, depth: int, samples: int | None = None) -> Problem:
        inputs, targets = self.data
        model = network(inputs.shape[1], (WIDTH[self.name],) * depth, 10)
        return Problem(model, "cross_entropy", inputs[:samples], targets[:samples])

    def trained(self, depth: int, batch_sizes: list[int], *, looks: tuple[int, ...] | None = None) -> xr.Dataset:
        record: list[Any] = [*RECORD] if looks is None else [*RECORD, simulate.weights(steps=looks)]
        name = f"{self.name}_{depth}_{'path' if looks is None else 'weights'}_{self.shop.preset}_{self.runs}.zarr"
        return simulate(
            self.problem(depth), SGD(RATE), batch_sizes, self.steps, self.runs, initial="resampled", record=record,
            seed=self.shop.seed, every=max(1, self.steps // 50), raw=True, store=Path(self.shop.folder) / name,
            workers=self.shop.workers, progress=self.shop.progress,
        )  # fmt: skip

    def curvature(self, depth: int, batch_sizes: list[int]) -> dict[int, xr.Dataset]:
        """By batch size, along `curvature_step`, of every run."""
        looks = tuple(sorted({round(self.steps * share) for share in LOOKS}))
        runs, part = self.trained(depth, batch_sizes, looks=looks), self.problem(depth, self.sampled)
        found = {}
        for b in batch_sizes:
            weights = torch.from_numpy(runs["weights"].sel(batch_size=b).transpose("run", "weights_step", ...).values)
            seen = [[_look(part, at) for at in run] for run in weights]
            variables = {
                name: (("run", "curvature_step", *["mode"][: seen[0][0][name].ndim]),
                       np.array([[look[name] for look in run] for run in seen]))
                for name in seen[0][0]
            }  # fmt: skip
            coordinates = {"run": runs["run"].values, "curvature_step": list(looks)}
            whole = xr.Dataset(variables, coordinates, runs.attrs | {"curvature_samples": self.sampled})
            found[b] = results.describe(whole.assign(loss=runs["loss"].sel(batch_size=b, drop=True)))
        return found


def _look(part: Problem, weights: torch.Tensor) -> dict[str, NDArray[np.float64]]:
    """Leading eigenpairs of H and M at these weights and how their spaces lie; NaN where one has not converged."""
    one = part.replica()
    with torch.no_grad():
        for name, value in one.unflatten(weights).items():
            one.parameters[name].copy_(value)
    hessian, moment = Curvature.hessian(one), Curvature.second_moment(one)
    top, other = hessian.top(LEADING, TOLERANCE), moment.top(LEADING)
    U, V = top.vectors, other.vectors
    good = top.converged.all() and other.converged.all()
    W = U.T @ V
    overlaps = (W**2).cumsum(0).cumsum(1).diagonal() / np.arange(1, LEADING + 1)  # of the leading d, for all d at once
    return {
        "hessian_eigenvalues": np.where(top.converged, top.values, np.nan),
        "second_moment_eigenvalues": np.where(other.converged, other.values, np.nan),
        "principal_angle_cosines": np.where(good, np.clip(np.linalg.svd(W, compute_uv=False), 0, 1), np.nan),
        "subspace_overlap": np.where(good, overlaps, np.nan),
        "hessian_frobenius_norm": np.array(Curvature.frobenius_norm(hessian, PROBES).value),
        "second_moment_frobenius_norm": np.array(np.linalg.norm(moment.gram) / part.n),
    }


def figure_3(shop: Workshop) -> Reproduction:
    return _angles(shop, "fig3", "mnist", [64, 256])


def figure_4(shop: Workshop) -> Reproduction:
    return _angles(shop, "fig4", "cifar10", [256, 512])


def figure_21(shop: Workshop) -> Reproduction:
    return _dynamics(shop, "fig21", "mnist", [3, 4, 5, 6], [64, 128, 256, 512])


def figure_22(shop: Workshop) -> Reproduction:
    return _dynamics(shop, "fig22", "cifar10", [3, 6], [256, 512])


def _angles(shop: Workshop, figure: str, name: str, batch_sizes: list[int]) -> Reproduction:
    images = Images(shop, name)
    found = {f"{name}_{b}": summarised(runs) for b, runs in images.curvature(3, batch_sizes).items()}
    p = images.problem(3).parameter_count
    chosen = [(f"{TITLE[name]}, 3 hidden layers, batch size {b}", f"$m$ = {b}", 10, p) for b in batch_sizes]
    return angles_drawn(figure, chosen, found)


def _dynamics(shop: Workshop, figure: str, name: str, depths: list[int], batch_sizes: list[int]) -> Reproduction:
    images = Images(shop, name)
    runs = {depth: images.trained(depth, batch_sizes).load() for depth in depths}
    summaries, titles, claims = {}, list[str](), list[str]()
    for depth, one in runs.items():
        ends = one["loss"].isel(step=[0, -1]).median("run")
        late = one["gradient_cosine"].sel(step=slice(images.steps // 2, None)).mean(("run", "step"))
        fallen = bool((ends.isel(step=1) < ends.isel(step=0)).all())
        title = f"{TITLE[name]}, {depth} hidden layers"
        claims.append(claim(
            fallen,
            f"{title}: the loss falls persistently; from {listing([number(float(x), 3) for x in ends.isel(step=0)])} "
            f"to {listing([number(float(x), 3) for x in ends.isel(step=1)])} in {images.steps:,} steps at batch sizes "
            f"{listing([f'{b}' for b in batch_sizes])}, where the mean cosine of the second half is "
            f"{listing([number(float(x), 2) for x in late])}",
        ))  # fmt: skip
        for b in (batch_sizes[0], batch_sizes[-1]):
            summaries[f"{name}_{depth}_{b}"] = summarised(one.sel(batch_size=b, drop=True))
            titles.append(f"{depth} layers, $m$ = {b}")
    return dynamics_drawn(figure, titles, summaries, claims)
