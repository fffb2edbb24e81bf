"""Estimates over runs against their slow definitions, and do their 95 % intervals cover the truth as often as they say?

A test of coverage rejects only a coverage outside [0.93, 0.97], at a false-alarm rate of ALARM = 1e-4 each (about 60 of
them run always, 100 with the slow ones); standard errors spoilt on purpose must be rejected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import shotnoise as sn
from shotnoise.simulate import outcome, verb
from shotnoise.simulate.statistics import (
    moments,
    pooled_moments,
    pooled_quantiles,
    pooled_variance,
    trace_variance,
)

ALARM = 1e-4
CLOSE = {"rtol": 1e-10, "atol": 1e-14}

# Slow definitions.


def trace_of_variance(rows: np.ndarray) -> float:
    """E||v||^2 - ||E v||^2, unbiased."""
    return float(sum(np.var(column, ddof=1) for column in rows.reshape(len(rows), -1).T)) if len(rows) > 1 else np.nan


def delete_one_jackknife(rows: np.ndarray, estimate: Callable[[np.ndarray], float]) -> float:
    """Standard error from leaving out one run after the other."""
    n = len(rows)
    if n < 3:
        return np.nan
    found = np.array([estimate(np.delete(rows, r, axis=0)) for r in range(n)])
    return float(np.sqrt((n - 1) / n * ((found - found.mean()) ** 2).sum()))


def share_of_the_top(rows: np.ndarray) -> float:
    u = np.sort(((rows - rows.mean(0)) ** 2).sum(1))[::-1]
    return float(u[: int(np.ceil(len(u) / 100))].sum() / u.sum())


DRAWN = {
    "normal": lambda rng, *shape: rng.normal(size=shape),
    "uniform": lambda rng, *shape: rng.uniform(size=shape),
    "exponential": lambda rng, *shape: rng.exponential(size=shape),
    "lognormal": lambda rng, *shape: rng.lognormal(sigma=2, size=shape),
    "cauchy": lambda rng, *shape: rng.standard_cauchy(size=shape),
    "few values": lambda rng, *shape: rng.integers(3, size=shape).astype(float),
    "constant": lambda rng, *shape: np.full(shape, 1.5),
    "far from zero": lambda rng, *shape: 1e6 + rng.normal(size=shape),
}
every_kind = pytest.mark.parametrize("kind", DRAWN)


def everybody(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_runs_that_are_alike_have_no_variance(dtype):
    """Their mean is not quite one of them; what that leaves is rounding, and anything else is not."""
    alike = torch.full((7, 300), 0.1, dtype=dtype).cumsum(1)[:1].expand(7, -1).clone()
    assert float((alike - alike.mean(0)).square().sum()) > 0
    assert float(trace_variance(alike, everybody(7))[""]) == 0
    alike[3] += 100 * torch.finfo(dtype).eps * alike[3]
    assert float(trace_variance(alike, everybody(7))[""]) > 0


@pytest.mark.parametrize("kind", ["normal", "exponential", "cauchy", "far from zero"])
@pytest.mark.parametrize(("runs", "p"), [(3, 1), (7, 4), (64, 5), (250, 2)])
def test_the_variance_of_vectors_is_that_of_the_definition(kind, runs, p):
    rows = DRAWN[kind](np.random.default_rng(runs), runs, p)
    found = trace_variance(torch.from_numpy(rows), everybody(runs))
    assert found.keys() == {"", "stderr", "top_share"}
    assert float(found[""]) == pytest.approx(trace_of_variance(rows), rel=1e-9)
    assert float(found["stderr"]) == pytest.approx(delete_one_jackknife(rows, trace_of_variance), rel=1e-7)
    assert float(found["top_share"]) == pytest.approx(share_of_the_top(rows), rel=1e-9)


def test_runs_that_have_diverged_are_left_out():
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alive = everybody(20)
    alive[[2, 5, 19]] = False
    sick = rows.clone()
    sick[~alive] = torch.tensor([[torch.nan], [torch.inf], [1e300]], dtype=torch.float64)
    for name, value in trace_variance(sick, alive).items():
        assert float(value) == pytest.approx(float(trace_variance(rows[alive], everybody(17))[name]), rel=1e-12)
    assert torch.equal(sick[alive], rows[alive])


@pytest.mark.parametrize("runs", [0, 1, 2, 3])
def test_few_runs_have_what_can_be_had(runs):
    rows = torch.arange(2.0 * runs, dtype=torch.float64).view(runs, 2) ** 2
    found = trace_variance(rows, everybody(runs))
    assert (float(found[""]) >= 0) == (runs > 1) and (float(found["stderr"]) >= 0) == (runs > 2)
    if runs:
        by_value = moments(rows, 3)
        assert bool(by_value["variance"].isfinite().all()) == (runs > 1)
        assert bool(by_value["variance_stderr"].isfinite().all()) == (runs > 2)
        assert (by_value["count"] == runs).all() and torch.equal(by_value["mean"], rows.mean(0))


def test_single_precision_is_summed_in_double():
    rows = 100 + np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)
    found = trace_variance(torch.from_numpy(rows), everybody(4000))
    assert all(value.dtype == torch.float64 for value in found.values())
    assert float(found[""]) == pytest.approx(trace_of_variance(rows.astype(float)), rel=1e-4)
    one = moments(torch.from_numpy(rows), 3)
    np.testing.assert_allclose(one["variance"], rows.astype(float).var(0, ddof=1), rtol=1e-10)


def spoilt(rng, *shape):
    """Normal numbers of which some are not: columns with none, one, two, three and all of them finite among them."""
    values = rng.normal(size=shape)
    values[rng.random(shape) < 0.2] = np.nan
    values[rng.random(shape) < 0.1] = np.inf
    flat = values.reshape(shape[0], -1)
    for column in range(4):
        flat[column:, column] = [np.nan, -np.inf][column % 2]
        flat[:column, column] = rng.normal(size=column)
    flat[:, 4] = rng.normal(size=shape[0])
    return values


def test_moments_are_those_of_the_definition():
    values = spoilt(np.random.default_rng(0), 30, 2, 5)
    found = moments(torch.from_numpy(values), 5)
    assert found["sketch"].shape == (5, 2, 5) and all(v.shape == (2, 5) for k, v in found.items() if k != "sketch")
    for where in np.ndindex(2, 5):
        kept = values[(slice(None), *where)]
        kept = kept[np.isfinite(kept)]
        n = len(kept)
        expected = {
            "count": n,
            "mean": kept.mean() if n else np.nan,
            "variance": kept.var(ddof=1) if n > 1 else np.nan,
            "variance_stderr": delete_one_jackknife(kept, lambda rows: rows.var(ddof=1)),
        }
        for name, value in expected.items():
            close = CLOSE if name != "variance_stderr" else {"rtol": 1e-6}
            np.testing.assert_allclose(found[name][where], value, **close)
        sketch = np.quantile(kept, (np.arange(5) + 0.5) / 5) if n else np.full(5, np.nan)
        np.testing.assert_allclose(found["sketch"][(slice(None), *where)], sketch, **CLOSE)


# Blocks together.


def blocks_of(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(values, np.cumsum(sizes)[:-1])


def together(blocks: Sequence[np.ndarray], name: str) -> np.ndarray:
    return np.stack([moments(torch.from_numpy(block), 7)[name].numpy() for block in blocks], -1)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_blocks_pooled_are_all_values_at_once(sizes, seed):
    values = spoilt(np.random.default_rng(seed), sum(sizes) + 4, 5)[: sum(sizes)]
    blocks = blocks_of(values, sizes)
    count, mean, variance = (together(blocks, name) for name in ("count", "mean", "variance"))
    whole = {name: value.numpy() for name, value in moments(torch.from_numpy(values), 7).items()}
    total, centre, spread = pooled_moments(count, mean, variance)
    np.testing.assert_array_equal(total, whole["count"])
    np.testing.assert_allclose(centre, whole["mean"], **CLOSE)
    np.testing.assert_allclose(spread, whole["variance"], **CLOSE)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_variances_of_blocks_are_weighted_by_their_degrees_of_freedom(sizes, seed):
    """Sum of squares within the blocks over sum of (R - 1); errors of independent blocks add up in squares.

    Blocks of two have no error and are left out, unless there are no larger ones.
    """
    blocks = blocks_of(np.random.default_rng(seed).normal(size=(sum(sizes), 3)), sizes)
    each = [trace_variance(torch.from_numpy(block), everybody(len(block))) for block in blocks]
    value, error = pooled_variance(*(np.array([float(e[k]) for e in each]) for k in ("", "stderr")), np.array(sizes))
    used = [block for block in blocks if len(block) > 2] or [block for block in blocks if len(block) == 2]
    squares = sum(((block - block.mean(0)) ** 2).sum() for block in used)
    freedom = sum(len(block) - 1 for block in used)
    if not used:
        assert np.isnan(value) and np.isnan(error)
        return
    errors = [(len(block) - 1) / freedom * delete_one_jackknife(block, trace_of_variance) for block in used]
    assert value == pytest.approx(squares / freedom, rel=1e-10)
    assert error == pytest.approx(np.sqrt(np.square(errors).sum()), rel=1e-8, nan_ok=True)


def test_blocks_are_pooled_along_the_last_axis():
    rng = np.random.default_rng(0)
    variance, stderr, count = rng.random((2, 3, 4)), rng.random((2, 3, 4)), rng.integers(3, 9, (2, 3, 4))
    value, error = pooled_variance(variance, stderr, count)
    for where in np.ndindex(2, 3):
        one = pooled_variance(variance[where], stderr[where], count[where])
        assert (value[where], error[where]) == pytest.approx((float(one[0]), float(one[1])), rel=1e-12)


# Quantiles.


def rank_error(values: np.ndarray, found: float, q: float) -> float:
    """By how much q misses the share of values below (or equal to) what was found."""
    return max(0.0, (values < found).mean() - q, q - (values <= found).mean())


@every_kind
@pytest.mark.parametrize("points", [15, 63, 127])
def test_the_sketch_is_within_half_of_one_over_its_points(kind, points):
    """Any quantile of a block and the point of the sketch next to it; 1/R more for the grain of R values."""
    values = DRAWN[kind](np.random.default_rng(1), 1000)
    sketch = moments(torch.from_numpy(values), points)["sketch"].numpy()
    for q in np.linspace(0, 1, 301):
        nearest = sketch[min(int(q * points), points - 1)]
        assert rank_error(values, nearest, q) <= 0.5 / points + 1 / len(values)


@every_kind
@pytest.mark.parametrize(("blocks", "points"), [(1, 15), (2, 31), (8, 15), (8, 63), (40, 15)])
def test_quantiles_of_pooled_blocks_are_within_their_bound(kind, blocks, points):
    """Half of 1/points from the sketch, and half of one point's share of all from reading between the points."""
    values = DRAWN[kind](np.random.default_rng(2), blocks, 300) * (1 + np.arange(blocks)[:, None] % 3)
    sketch = np.stack([moments(torch.from_numpy(block), points)["sketch"].numpy() for block in values])
    q = np.linspace(0, 1, 201)
    found = pooled_quantiles(sketch, np.full(blocks, 300.0), q)
    bound = 0.5 / points * (1 + 1 / blocks) + 1 / 300
    assert max(rank_error(values, v, p) for v, p in zip(found, q, strict=True)) <= bound
    assert (np.diff(found) >= 0).all()
    if kind in ("normal", "lognormal") and blocks > 1:
        shifted = pooled_quantiles(sketch, np.full(blocks, 300.0), np.clip(q + 1.5 / points, 0, 1))
        assert max(rank_error(values, v, p) for v, p in zip(shifted, q, strict=True)) > bound, "the test can fail"


def test_blocks_of_unequal_size_count_by_their_runs():
    rng = np.random.default_rng(3)
    blocks = [rng.normal(size=400), 5 + rng.normal(size=40), np.full(4, np.nan)]
    values, points = np.concatenate(blocks[:2]), 63
    parts = [moments(torch.from_numpy(block), points) for block in blocks]
    sketch = np.stack([part["sketch"].numpy() for part in parts])
    count = np.array([float(part["count"]) for part in parts])
    q = np.linspace(0.01, 0.99, 99)
    bound = 0.5 / points + 0.5 * 400 / 440 / points + 1 / 40
    found = pooled_quantiles(sketch, count, q)
    assert max(rank_error(values, v, p) for v, p in zip(found, q, strict=True)) <= bound
    alike = pooled_quantiles(sketch, np.array([1.0, 1.0, 0.0]), q)
    assert max(rank_error(values, v, p) for v, p in zip(alike, q, strict=True)) > 0.2
    assert np.isnan(pooled_quantiles(np.full((2, 3), np.nan), np.zeros(2), q)).all()


def test_summaries_of_blocks_are_those_of_all_runs():
    """What `simulate` keeps without the values of every run, beside what `summary` makes of these values."""
    problem = small_problem(SETTINGS["four points"])
    run = {"batch_size": 2, "steps": 3, "runs": 400, "block": 128, "seed": 1, "record": ["loss", "weights"]}
    whole = sn.simulate.summary(sn.simulate(problem, sn.rules.SGD(0.3), raw=True, workers=1, **run))
    parts = sn.simulate(problem, sn.rules.SGD(0.3), raw=False, workers=1, **run)
    for name in ("loss", "loss_stderr", "loss_variance", "weights", "weights_stderr", "weights_variance"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-8, atol=1e-15)
    np.testing.assert_allclose(parts["loss_variance_stderr"], whole["loss_variance_stderr"], rtol=0.1, atol=1e-15)
    assert parts["loss_quantile"].dims == whole["loss_quantile"].dims == ("batch_size", "step", "quantile")
    spread = whole["loss_quantile"].sel(quantile=0.95) - whole["loss_quantile"].sel(quantile=0.05)
    assert (abs(parts["loss_quantile"] - whole["loss_quantile"]) <= 0.15 * spread + 1e-12).all()
    assert "run" not in parts["loss"].dims and (parts["runs_excluded"] == 0).all()


# Coverage.


def within(hits: np.ndarray, low: float = 0.93, high: float = 0.97) -> bool:
    """Is this number of hits compatible with a coverage between `low` and `high`?"""
    count, runs = int(hits.sum()), len(hits)
    too_few = stats.binom.cdf(count, runs, low) < ALARM / 2
    too_many = stats.binom.sf(count - 1, runs, high) < ALARM / 2
    return not (too_few or too_many)


def covers(value: np.ndarray, stderr: np.ndarray, truth: float) -> np.ndarray:
    return np.abs(value - truth) <= stats.norm.isf(0.025) * stderr


def test_the_judge_can_tell():
    rng = np.random.default_rng(0)
    for probability, fine in ((0.935, True), (0.965, True), (0.85, False), (1.0, False)):
        assert within(rng.random(2000) < probability) is fine


@dataclass(frozen=True)
class Vectors:
    """Independent vectors with a known trace of covariance, in blocks."""

    kind: str
    p: int
    runs: int
    block: int

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        unit = {
            "normal": lambda size: rng.normal(size=size),
            "exponential": lambda size: rng.exponential(size=size) - 1,
            "student 9": lambda size: rng.standard_t(9, size=size) * np.sqrt(7 / 9),
        }[self.kind]
        return unit((count, self.p)) / np.sqrt(np.arange(1, self.p + 1)) + 3

    @property
    def truth(self) -> float:
        return float((1 / np.arange(1, self.p + 1)).sum())

    def estimates(self, repeats: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        rng, count, blocks = np.random.default_rng(seed), self.block, self.runs // self.block
        found = [
            trace_variance(torch.from_numpy(self.draw(rng, count)), everybody(count)) for _ in range(repeats * blocks)
        ]
        value, stderr = (np.array([float(f[k]) for f in found]).reshape(repeats, blocks) for k in ("", "stderr"))
        return pooled_variance(value, stderr, np.full((repeats, blocks), count))

    def __str__(self):
        return f"{self.kind} p={self.p} runs={self.runs} block={self.block}"


def check_vectors(setting: Vectors, repeats: int) -> None:
    value, stderr = setting.estimates(repeats)
    hits = covers(value, stderr, setting.truth)
    assert within(hits), hits.mean()
    independent = stderr / np.sqrt(setting.p)  # as if runs * p numbers were independent
    assert not within(covers(value, independent, setting.truth))
    assert not within(covers(value, stderr / np.sqrt(setting.runs), setting.truth))
    if repeats >= 1000:
        assert not within(covers(value, 2 * stderr, setting.truth))


FEW_VECTORS = [Vectors("normal", 5, 512, 64), Vectors("exponential", 4, 512, 128), Vectors("student 9", 3, 1024, 256)]
MANY_VECTORS = [
    Vectors(kind, p, runs, block)
    for kind in ("normal", "exponential", "student 9")
    for p in (4, 30)
    for runs, block in ((512, 64), (512, 256), (2048, 64), (2048, 256))
]


@pytest.mark.parametrize("setting", FEW_VECTORS, ids=str)
def test_intervals_of_a_variance_cover(setting):
    check_vectors(setting, 400)


@pytest.mark.slow
@pytest.mark.parametrize("setting", MANY_VECTORS, ids=str)
def test_intervals_of_a_variance_cover_in_many_settings(setting):
    check_vectors(setting, 2000)


# Coverage of what `simulate` says, on linear regression, where all is known.


@dataclass(frozen=True)
class Regression:
    """Samples (n, p), targets (n,), first weights, learning rate, batch size; batches drawn with replacement."""

    x: tuple[tuple[float, ...], ...]
    y: tuple[float, ...]
    start: tuple[float, ...]
    rate: float
    b: int
    steps: int

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.array(self.x), np.array(self.y), np.array(self.start)


def drawn_regression(n: int, p: int, rate: float, b: int, steps: int) -> Regression:
    rng = np.random.default_rng(n)
    x, w = rng.normal(size=(n, p)).round(2), rng.normal(size=p).round(2)
    y = (x @ w + 0.5 * rng.normal(size=n)).round(2)
    return Regression(tuple(map(tuple, x)), tuple(y), (0.0,) * p, rate, b, steps)


SETTINGS = {
    "three points": Regression(((1.0,), (2.0,), (-1.0,)), (1.0, 0.0, 1.0), (1.0,), 0.25, 1, 2),
    "four points": Regression(
        ((1.0, 0.5), (0.5, -1.0), (-1.0, 0.25), (0.0, 1.5)), (1.0, -0.5, 0.0, 2.0), (0.5, -1.0), 0.3, 2, 3
    ),
    "twenty samples": drawn_regression(20, 3, 0.1, 2, 12),
    "twenty samples, b = 8": drawn_regression(20, 5, 0.2, 8, 12),
}
BY_NAME = ("gradient_variance", "full_gradient_variance", "loss", "loss_variance")
Truth = dict[str, np.ndarray]


def by_enumeration(setting: Regression) -> Truth:
    """Over all sequences of batches, one as likely as another; by step."""
    x, y, start = setting.arrays
    batches = np.array(list(product(range(len(x)), repeat=setting.b)))
    weights, found = start[None], {name: [] for name in BY_NAME}

    def gradients(w, rows):  # (paths, batches, p)
        residuals = np.einsum("bip,wp->wbi", x[rows], w) - y[rows]
        return np.einsum("wbi,bip->wbp", residuals, x[rows]) / rows.shape[1]

    for _ in range(setting.steps + 1):
        g = gradients(weights, batches)
        whole = gradients(weights, np.arange(len(x))[None])[:, 0]
        losses = 0.5 * ((weights @ x.T - y) ** 2).mean(1)
        found["gradient_variance"].append(g.reshape(-1, x.shape[1]).var(0).sum())
        found["full_gradient_variance"].append(whole.var(0).sum())
        found["loss"].append(losses.mean())
        found["loss_variance"].append(losses.var())
        weights = (weights[:, None] - setting.rate * g).reshape(-1, x.shape[1])
    return {name: np.array(values) for name, values in found.items()}


def by_recursion(setting: Regression) -> Truth:
    """m = E w and P = Cov w: m <- m - a (C m - d), P <- J P J + a^2 N / b with J = I - a C and N the noise of a sample,

    N = X^T diag(rho) X / n - C P C - grad grad^T,   rho_i = x_i^T P x_i + (x_i^T m - y_i)^2.
    """
    x, y, m = setting.arrays
    n, p = x.shape
    moment, d, covariance = x.T @ x / n, x.T @ y / n, np.zeros((p, p))
    found: dict[str, list[float]] = {name: [] for name in BY_NAME[:3]}
    for _ in range(setting.steps + 1):
        gradient = moment @ m - d
        rho = np.einsum("ni,ij,nj->n", x, covariance, x) + (x @ m - y) ** 2
        of_full = moment @ covariance @ moment
        noise = (x.T * rho) @ x / n - of_full - np.outer(gradient, gradient)
        found["gradient_variance"].append(np.trace(noise) / setting.b + np.trace(of_full))
        found["full_gradient_variance"].append(np.trace(of_full))
        found["loss"].append(0.5 * ((x @ m - y) ** 2).mean() + 0.5 * np.trace(moment @ covariance))
        step = np.eye(p) - setting.rate * moment
        m, covariance = m - setting.rate * gradient, step @ covariance @ step + setting.rate**2 * noise / setting.b
    return {name: np.array(values) for name, values in found.items()}


def small_problem(setting: Regression) -> sn.Problem:
    x, y, start = (torch.from_numpy(a) for a in setting.arrays)
    model = torch.nn.Linear(x.shape[1], 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(start)
    return sn.Problem(model, "mse", x, y[:, None])


@cache
def truth_of(name: str) -> Truth:
    setting = SETTINGS[name]
    return by_enumeration(setting) if name.endswith("points") else by_recursion(setting)


def test_the_truth_is_known_in_three_ways():
    """Enumeration, recursion and, at the start, `measure`; and the numbers worked out by hand for three points."""
    for name in ("three points", "four points"):
        enumerated, recursion = by_enumeration(SETTINGS[name]), by_recursion(SETTINGS[name])
        for quantity, values in recursion.items():
            np.testing.assert_allclose(enumerated[quantity], values, rtol=1e-12, atol=1e-14)
    for name, setting in SETTINGS.items():
        measured = sn.measure(small_problem(setting), [setting.b], sampling=sn.sampling.WithReplacement())
        at_start = float(measured["conditional_gradient_variance"][0])
        assert truth_of(name)["gradient_variance"][0] == pytest.approx(at_start, rel=1e-10)
        assert truth_of(name)["loss"][0] == pytest.approx(float(measured["loss"]), rel=1e-10)
    three = truth_of("three points")  # kappa = 1
    assert three["gradient_variance"].tolist() == pytest.approx([8 / 3, 11 / 6 + 1 / 3, 5 / 4 + 5 / 16 + 1 / 24])
    assert three["full_gradient_variance"][:2].tolist() == pytest.approx([0, 2 / 3], abs=1e-14)
    assert three["loss"][1] == pytest.approx(7 / 12 + 1 / 6) and three["loss_variance"][1] == pytest.approx(13 / 72)


def repeated(name: str, repeats: int, runs: int, block: int, seed: int, raw: bool) -> xr.Dataset:
    """The result of `repeats` ensembles, along the first dimension: one large one, its blocks dealt out in turn."""
    setting, patch = SETTINGS[name], pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(verb, "assemble", lambda pieces: pieces)
        pieces = sn.simulate(
            small_problem(setting), sn.rules.SGD(setting.rate), setting.b, setting.steps, repeats * runs, block=block,
            record=["gradient_variance", "full_gradient_variance", "loss"], seed=seed, raw=raw, workers=1,
        )  # fmt: skip
    kept = {str(n): (v.dims, v.values.reshape(repeats, -1, *v.shape[2:])) for n, v in pieces.data_vars.items()}
    coordinates = {str(n): c for n, c in pieces.coords.items() if n not in ("batch_size", "run", "block")}
    return outcome.assemble(xr.Dataset(kept, coordinates | {"batch_size": np.arange(repeats)}, pieces.attrs))


def hits_of(
    found: xr.Dataset, name: str, spoil: Callable = lambda stderr, p: stderr
) -> dict[tuple[str, int], np.ndarray]:
    found = sn.simulate.summary(found) if "run" in found["loss"].dims else found
    p, true = len(SETTINGS[name].start), truth_of(name)
    return {
        (quantity, t): covers(found[quantity][:, t].values, spoil(found[f"{quantity}_stderr"][:, t].values, p), value)
        for quantity, values in true.items()
        for t, value in enumerate(values)
        if t or quantity == "gradient_variance"
    }


def check_ensemble(name: str, repeats: int, runs: int, block: int, seed: int, raw: bool) -> None:
    found, p = repeated(name, repeats, runs, block, seed, raw), len(SETTINGS[name].start)
    for which, hits in hits_of(found, name).items():
        assert within(hits), (which, hits.mean())

    def all_seen(spoil: Callable) -> bool:
        return not any(within(hits) for hits in hits_of(found, name, spoil).values())

    assert all_seen(lambda stderr, p: stderr / runs**0.5) and all_seen(lambda stderr, p: stderr / 3)
    if p >= 5 or (p > 1 and repeats >= 500):  # coverages of 0.62, and of 0.83 or less
        assert all_seen(lambda stderr, p: stderr / p**0.5), "as if runs * p numbers were independent"


@pytest.mark.parametrize(("name", "raw"), [("four points", True), ("twenty samples, b = 8", False)])
def test_intervals_of_an_ensemble_cover(name, raw):
    check_ensemble(name, repeats=100, runs=256, block=128, seed=0, raw=raw)


MANY = [
    ("three points", 512, 256, True),
    ("three points", 1024, 64, False),
    ("four points", 512, 64, False),
    ("four points", 2048, 256, True),
    ("twenty samples", 512, 128, True),
    ("twenty samples", 1024, 128, False),
    ("twenty samples, b = 8", 512, 64, False),
    ("twenty samples, b = 8", 2048, 256, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "runs", "block", "raw"), MANY)
def test_intervals_of_an_ensemble_cover_in_many_settings(name, runs, block, raw):
    check_ensemble(name, 500, runs, block, seed=1, raw=raw)
