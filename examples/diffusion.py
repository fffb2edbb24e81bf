"""May I think of my SGD as a diffusion? A regression, asked at two learning rates, and a minimum where the noise turns.

python examples/diffusion.py [figure.svg]
"""

import sys

import numpy as np
import torch

import shotnoise as sn

df = sn.predict.diffusion


def main(figure: str | None = None) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(60, 3)))
    y = x.sum(1, keepdim=True) + 0.5 * torch.from_numpy(rng.normal(size=(60, 1)))
    problem = sn.Problem(torch.nn.Linear(3, 1, dtype=torch.float64), "mse", x, y)
    for rate in (0.02, 0.5):
        verdict = df.validity(problem, rate, batch_size=15)
        print(f"learning rate {rate:g}: {verdict['status'].item()}")
        for check in verdict["check"].values:
            own = verdict.sel(check=check)
            mark = "ok" if own["passed"] else "NO"
            print(f"  {mark}  {check}: {own['value'].item():.3g} (allowed {own['threshold'].item():g})")
    assert verdict["status"].item() == "not a diffusion"

    hessian, noise = [[2.0, 0.5], [0.5, 1.0]], [[1.0, -0.3], [-0.3, 0.6]]
    models = df.ornstein_uhlenbeck(hessian, noise, learning_rate=0.1, batch_size=4)
    for name, error in zip(models["theory"].values, models["relative_error"].values, strict=True):
        print(f"{name}: covariance of the weights off by {100 * error:+.1f} %")
    turning = df.rotation(hessian, noise, learning_rate=0.1, batch_size=4)
    grid = df.FokkerPlanck(df.Quadratic(hessian, noise), 0.1, 4, [(-0.5, 0.5), (-0.55, 0.55)], cells=80).stationary()
    exact, found = float(turning["entropy_production"]), float(grid["entropy_production"])
    print(f"entropy produced per unit time: {exact:.4f}, on a grid {found:.4f}")
    assert abs(found / exact - 1) < 0.02
    if figure is not None:
        sn.show.save(sn.show.current(grid), figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
