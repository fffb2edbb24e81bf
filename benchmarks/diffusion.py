"""Paths of a diffusion beside torchsde, and the Fokker-Planck equation on a grid: CPU time on one thread.

    .venv-peers/bin/python benchmarks/diffusion.py

euler   1,024 paths x 100 steps of Euler's method, 20 weights, linear drift, dense noise with 20 sources; target 15 ms.
        torchsde does the same by `sdeint(method="euler")`, noise type "general", in single precision throughout, where
        shotnoise keeps its states in double.
        Checked in the same run: covariances over the paths agree with the exact one of the method, in standard errors.
grid    200 x 200 cells to stationarity, full covariance that depends on the weights, and Hessian and noise that do not
        commute, against linear algebra; target 20 s.

Writes results/diffusion.json.
"""

import time
from typing import Any

import numpy as np
import torch
import torchsde

import shotnoise as sn
from protocol import cpu_seconds, save

df = sn.predict.diffusion
PATHS, STEPS, WEIGHTS, RATE = 1024, 100, 20, 0.05
TARGETS = {"euler": 0.015, "grid": 20.0}


def main() -> None:
    torch.set_num_threads(1)
    kept = {"euler": euler(), "grid": grid()}
    print("written:", save("diffusion", kept))


def euler() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, WEIGHTS, WEIGHTS))
    hessian, sigma = a @ a.T / WEIGHTS + np.eye(WEIGHTS), b / np.sqrt(WEIGHTS)
    equation = df.first_order(df.Landscape(WEIGHTS, linear(hessian), factor=sigma), RATE, 1)

    def ours() -> np.ndarray:
        found = df.integrate(equation, STEPS, PATHS, np.zeros(WEIGHTS))
        return np.asarray(found["weights"].values[:, 0])

    theirs = {"torchsde": peer(hessian, sigma)}
    F = np.eye(WEIGHTS) - RATE * hessian
    exact = np.zeros_like(F)
    for _ in range(STEPS):
        exact = F @ exact @ F.T + RATE**2 * sigma @ sigma.T
    for name, method in {"shotnoise": ours, **theirs}.items():
        require_covariance(name, method(), exact)
    taken = {name: min(times) for name, times in cpu_seconds({"shotnoise": ours, **theirs}).items()}
    for name, seconds in taken.items():
        print(f"euler, {name}: {1e3 * seconds:.1f} ms of CPU time")
    fastest = min(seconds for name, seconds in taken.items() if name != "shotnoise")
    return {"cpu_seconds": taken, "target": TARGETS["euler"], "times_faster": fastest / taken["shotnoise"]}


def linear(hessian: np.ndarray) -> Any:
    H = torch.from_numpy(hessian)
    return lambda w: w @ H


def peer(hessian: np.ndarray, sigma: np.ndarray) -> Any:
    H, noise = torch.from_numpy(hessian).float(), (RATE**0.5 * torch.from_numpy(sigma)).float()

    class Equation(torch.nn.Module):
        noise_type, sde_type = "general", "ito"

        def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return -y @ H

        def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return noise.expand(len(y), WEIGHTS, WEIGHTS)

    equation, start = Equation(), torch.zeros(PATHS, WEIGHTS)
    times = torch.tensor([0.0, STEPS * RATE])

    def call() -> np.ndarray:
        with torch.no_grad():
            return torchsde.sdeint(equation, start, times, dt=RATE, method="euler")[-1].double().numpy()

    return call


def require_covariance(name: str, weights: np.ndarray, exact: np.ndarray) -> None:
    products = np.einsum("ri,rj->rij", weights, weights)
    z = (products.mean(0) - exact) / (products.std(0) / np.sqrt(len(weights)))
    if np.abs(z).max() > 5:
        raise SystemExit(f"{name}: the covariance is {np.abs(z).max():.1f} standard errors off")


def grid() -> dict[str, Any]:
    H, C = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.3], [-0.3, 0.6]])
    start = time.process_time()
    found = df.FokkerPlanck(df.Quadratic(H, C), 0.1, 4, [(-0.5, 0.5), (-0.55, 0.55)], 200).stationary()
    constant = time.process_time() - start
    exact = df.rotation(H, C, 0.1, 4)
    error = float(
        np.abs(found["weight_covariance"] - exact["weight_covariance"]).max() / exact["weight_covariance"].max()
    )
    well = df.Landscape(2, two_wells, varying)
    start = time.process_time()
    driven = df.FokkerPlanck(well, 0.3, 1, [(-2.6, 2.6), (-2.6, 2.6)], 200).stationary()
    varied = time.process_time() - start
    print(f"grid: {constant:.2f} s linear (covariance off by {error:.1e}), {varied:.2f} s two wells (target 20)")
    return {
        "cpu_seconds": {"linear": constant, "two wells": varied},
        "target": TARGETS["grid"],
        "covariance_error": error,
        "least_density": float(driven["density"].min()),
    }


def two_wells(w: torch.Tensor) -> torch.Tensor:
    return torch.stack([w[:, 0] ** 3 - w[:, 0], w[:, 1]], 1)


def varying(w: torch.Tensor) -> torch.Tensor:
    """Skew, larger away from the middle."""
    size = 0.6 + 0.2 * (w**2).sum(1)
    root = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    return size[:, None, None] * (root @ root.T)


if __name__ == "__main__":
    main()
