"""Theorem 3 as corrected: what the exact step gains, on average over all batches, and what its printed form gets wrong."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from optim_cases import classifier, data, flat, put
from torch import nn

import shotnoise as sn
from shotnoise.optim import AdaptiveSGD, Exact, Observed, PreconditionedSGD, guaranteed_decrease, steps_needed, window
from shotnoise.optim.noise import Estimates

N, M, P = 4, 2, 3


class Bowl(nn.Module):
    """f_i(theta) = L/2 ||theta - z_i||^2, so f is L/2 ||theta||^2 and a constant if the z_i have mean 0."""

    def __init__(self, curvature=1.0):
        super().__init__()
        self.theta = nn.Linear(1, P, bias=False).double()
        self.curvature = curvature
        with torch.no_grad():
            self.theta.weight.copy_(torch.tensor([[0.9], [-0.4], [0.1]]))

    def forward(self, z):
        return np.sqrt(self.curvature) * (self.theta(torch.ones(len(z), 1, dtype=torch.float64)) - z)


def bowl(curvature=1.0, seed=0):
    z = torch.randn(N, P, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = (z - z.mean(0)) * torch.tensor([2.0, 0.3, 1.0])
    return sn.Problem(Bowl(curvature), "mse", z, torch.zeros(N, P, dtype=torch.float64))


def mean_change(problem, make):
    """E Delta over all N^M batches of one step of make(parameters) from the same weights."""
    start, before = flat(problem.model), problem.loss()
    changes = []
    for batch in product(range(problem.n), repeat=M):
        put(problem.model, start)
        optimizer = make(list(problem.model.parameters()))
        gradient = problem.gradient(torch.tensor(batch))
        for name, p in problem.parameters.items():
            p.grad = gradient[name]
        optimizer.step()
        changes.append(problem.loss() - before)
    put(problem.model, start)
    return float(np.mean(changes))


def moments(problem, by_coordinate=False):
    oracle = Exact(problem, M)
    oracle.bind(list(problem.model.parameters()), by_coordinate)
    found = list(oracle.moments().values())
    if by_coordinate:
        square = torch.cat([mu.flatten() ** 2 for mu, _ in found])
        return square.numpy(), (square + torch.cat([v.flatten() for _, v in found])).numpy()
    square = sum(float(mu.square().sum()) for mu, _ in found)
    return square, square + sum(v for _, v in found)


@pytest.mark.parametrize("curvature", [1.0, 3.0])
@pytest.mark.parametrize("c", [0.3, 0.5, 1.0, 1.5, 1.9])
def test_on_a_round_bowl_the_gain_is_the_guaranteed_one_exactly(c, curvature):
    problem = bowl(curvature)
    square, second = moments(problem)
    expected = -(c - c**2 / 2) * square**2 / (curvature * second)
    found = mean_change(problem, lambda p: AdaptiveSGD(p, Exact(problem, M), curvature, lr=c))
    assert found == pytest.approx(expected, rel=1e-13)
    assert found == pytest.approx(-guaranteed_decrease(square, second, curvature, c), rel=1e-13)
    # broken: the second moment of one sample in place of the batch's, as printed
    printed = mean_change(problem, lambda p: AdaptiveSGD(p, Exact(problem, 1), curvature, lr=c))
    assert abs(printed - expected) > 0.02 * abs(expected)


@pytest.mark.parametrize("c", [0.5, 1.0, 1.5])
def test_the_diagonal_form_gains_its_own_sum_and_no_less_than_the_scalar_one(c):
    problem = bowl()
    square, second = moments(problem, by_coordinate=True)
    found = mean_change(problem, lambda p: PreconditionedSGD(p, Exact(problem, M), 1.0, lr=c))
    assert found == pytest.approx(-(c - c**2 / 2) * float((square**2 / second).sum()), rel=1e-13)
    assert found == pytest.approx(-guaranteed_decrease(square, second, 1.0, c), rel=1e-13)
    assert found < mean_change(problem, lambda p: AdaptiveSGD(p, Exact(problem, M), 1.0, lr=c))
    printed = -0.25 * float((square / second).sum())  # second powers, as printed
    assert abs(found - printed) > 0.05


def test_never_a_weaker_guarantee_the_finer_the_blocks():
    rng = np.random.default_rng(0)
    for _ in range(500):
        square = rng.exponential(size=6) ** 3
        second = square + rng.exponential(size=6) ** 3
        scalar = guaranteed_decrease(square.sum(), second.sum(), 1.0)
        blocks = guaranteed_decrease(square.reshape(2, 3).sum(1), second.reshape(2, 3).sum(1), 1.0)
        diagonal = guaranteed_decrease(square, second, 1.0)
        assert scalar <= blocks * (1 + 1e-12) and blocks <= diagonal * (1 + 1e-12)


@pytest.mark.parametrize("optimizer", [AdaptiveSGD, PreconditionedSGD])
def test_on_a_network_the_expected_loss_falls_by_at_least_the_guarantee(optimizer):
    """L from the Hessian along the steps, over all 4^2 batches, at points all along a training."""
    model, (x, y) = classifier(), data(N)
    problem = sn.Problem(model, "cross_entropy", x, y)
    smoothness = 4 * sn.optim.HessianNorm(problem, None, safety=1.0).at(0)
    for _ in range(4):
        bound = guaranteed_decrease(*moments(problem, optimizer.by_coordinate), smoothness)
        found = mean_change(problem, lambda p: optimizer(p, Exact(problem, M), smoothness))
        assert found <= -bound < 0
        steps = optimizer(model.parameters(), Exact(problem, N), smoothness)
        for _ in range(10):
            for name, g in problem.gradient().items():
                dict(model.named_parameters())[name].grad = g
            steps.step()


def test_a_ratio_from_the_same_batch_makes_the_loss_rise_where_the_exact_one_makes_it_fall():
    """Why the step must not depend on the batch it multiplies: little signal, much noise."""
    problem = bowl(seed=3)
    with torch.no_grad():
        problem.model.theta.weight.mul_(0.3)
    exact = mean_change(problem, lambda p: AdaptiveSGD(p, Exact(problem, M), 1.0))
    same = []
    start, before = flat(problem.model), problem.loss()
    gradients = problem.per_sample_gradients()["theta.weight"].flatten(1)
    for batch in product(range(N), repeat=M):
        g = gradients[list(batch)]
        mean = g.mean(0)
        spread = ((g - mean) ** 2).sum() / (M - 1) / M
        ratio = float(torch.clamp(1 - spread / (mean**2).sum(), 0, 1)) if float((mean**2).sum()) else 0.0
        put(problem.model, start - ratio * mean)
        same.append(problem.loss() - before)
    assert exact < 0 < float(np.mean(same))


@pytest.mark.parametrize("optimizer", [AdaptiveSGD, PreconditionedSGD])
def test_the_default_step_is_a_function_of_the_past_alone(optimizer):
    """Displacement over gradient is the same whatever the current batch is; with batches of the past changed it is not."""
    model, (x, y) = classifier(), data()

    def step_sizes(past, current):
        put(model, start)
        noise = Observed(model)
        steps = optimizer(model.parameters(), noise, 3.0, warmup=2)
        for batch in (*past, current):
            steps.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            before = flat(model)
            steps.step()
        noise.close()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return torch.where(gradient.abs() > 1e-6, (before - flat(model)) / gradient, 0)

    start = flat(model)
    one, two = list(range(8)), list(range(8, 16))
    a = step_sizes([one, two], list(range(16, 20)))
    b = step_sizes([one, two], list(range(18, 24)))
    c = step_sizes([one, list(range(4, 12))], list(range(16, 20)))
    both = (a != 0) & (b != 0)
    torch.testing.assert_close(a[both], b[both], rtol=0, atol=1e-9)
    both = (a != 0) & (c != 0)
    assert bool(both.any()) and float((a - c)[both].abs().max()) > 1e-3


@pytest.mark.parametrize("optimizer", [AdaptiveSGD, PreconditionedSGD])
def test_where_the_gradient_vanishes_there_is_no_step(optimizer):
    problem = bowl()
    with torch.no_grad():
        problem.model.theta.weight.zero_()
    assert mean_change(problem, lambda p: optimizer(p, Exact(problem, M), 1.0)) == pytest.approx(0.0, abs=1e-30)
    still = sn.Problem(Bowl(), "mse", torch.zeros(N, P, dtype=torch.float64), torch.zeros(N, P, dtype=torch.float64))
    with torch.no_grad():
        still.model.theta.weight.zero_()
    assert mean_change(still, lambda p: optimizer(p, Exact(still, M), 1.0)) == 0.0  # 0/0
    model = still.model
    steps = optimizer(model.parameters(), Observed(model), 1.0, warmup=1, every=1)
    for _ in range(3):
        steps.zero_grad()
        model(still.samples.batch(torch.arange(3))[0]).square().mean().backward()
        steps.step()
    assert not bool(flat(model).any())


def test_the_window_is_where_three_quarters_of_the_best_gain_are_sure():
    square, second, smoothness = 0.25, 0.425, 2.0
    low, high = window(square, second, smoothness)
    best = guaranteed_decrease(square, second, smoothness)
    for eta, inside in ((low, True), (high, True), (0.99 * low, False), (1.01 * high, False)):
        bound = eta * square - eta**2 * smoothness / 2 * second
        assert (bound >= 0.75 * best - 1e-15) == inside
    assert guaranteed_decrease(square, second, smoothness, 2.0) == 0.0


class Given(Estimates):
    """A noise source for the counterexample: no noise at all."""

    def variances(self, parameters, squares):
        return [0.0 for _ in parameters]

    def forget(self):
        pass


def test_the_printed_number_of_steps_is_too_small():
    """f' a saw-tooth with slopes +-1 that returns to 1 after every step of c = 0.501: the gradient stays 1 for 200 steps."""
    c, steps = 0.501, 200
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def slope(x):
        """1 at the points 0, -c, -2c, ..., down to 1 - c/2 halfway, and after 200 steps down to 0 at last."""
        travelled = -x
        inside = travelled % c
        return 1 - min(inside, c - inside) if travelled < steps * c else max(0.0, 1 - (travelled - steps * c))

    drop = steps * (c - c**2 / 4) + 0.5  # f(0) - inf f, the integral of f'
    optimizer = AdaptiveSGD([theta], Given(), 1.0, lr=c, warmup=1)
    smallest = []
    for _ in range(3 * steps):
        g = slope(round(float(theta.detach()), 12))
        smallest.append(g**2)
        theta.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
    target = 0.99
    first = next(t for t, square in enumerate(smallest) if square <= target)
    printed = int(np.ceil(2 * drop * target / target**2))
    assert printed == 179 and first > steps > printed  # statement (2) as printed is violated
    assert first <= steps_needed(drop, 1.0, 0.0, target) + 1  # the first batch is only looked at
    assert steps_needed(drop, 1.0, 0.0, target, c=1.0) == printed


def test_the_number_of_steps_holds_along_a_noisy_training():
    """Exact steps on the bowl, over many runs: min_t E||mu_t||^2 is below the target in time."""
    problem = bowl()
    square, second = moments(problem)
    noise, gap, target = second - square, square / 2, square / 20  # the variance is the same everywhere
    needed = steps_needed(gap, 1.0, noise, target, c=1.0)
    rng = np.random.default_rng(0)
    z = problem.samples.batch(torch.arange(N))[0].numpy()
    theta = np.tile(problem.model.theta.weight.detach().numpy().T, (4000, 1))
    means = []
    for _ in range(needed):
        mu = (theta**2).sum(1)
        means.append(mu.mean())
        ratio = mu / (mu + noise)
        batch = z[rng.integers(N, size=(len(theta), M))].mean(1)
        theta = theta - ratio[:, None] * (theta - batch)
    assert min(means) <= target
