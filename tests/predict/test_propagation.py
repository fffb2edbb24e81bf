"""First-order propagation against exact linear regression, against simulation of networks, and probes against covariances."""

import math
import sys
from itertools import product

import numpy as np
import pytest
import torch

import shotnoise as sn
from model_cases import Attention
from shotnoise.predict.propagation import amplitudes
from shotnoise.predict.propagation.amplitudes import Amplitudes
from shotnoise.predict.propagation.path import Path
from shotnoise.predict.propagation.second_order import SecondOrder

WITH, WITHOUT = sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement()


@pytest.fixture
def regression():
    rng = np.random.default_rng(0)
    x, y, w0 = rng.normal(size=(15, 3)), rng.normal(size=15), rng.normal(size=3)
    model = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    return x, y, w0, sn.Problem(model, "mse", x, y[:, None], l2=0.1)


def tanh_problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=dtype)
    y = torch.randn(12, 2, generator=generator, dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 4, dtype=dtype), torch.nn.Tanh(), torch.nn.Linear(4, 2, dtype=dtype)
        )
    return sn.Problem(model, "mse", x, y)


def test_linear_regression_is_exact(regression):
    x, y, w0, problem = regression
    law = sn.predict.propagation(problem, w0, 0.2, 20, [2, 5], sampling=WITHOUT)
    exact = sn.predict.regression_polynomial(x, y, w0, 0.2, 20, l2=0.1)
    for name in ("gradient_variance", "full_gradient_variance"):
        leading = [p.coefficients[1] if len(p.coefficients) > 1 else 0.0 for p in exact[name]]
        np.testing.assert_allclose(law[f"{name}_leading"], leading, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(law[name], law["kappa"] * law[f"{name}_leading"])
    large = sn.predict.regression(x, y, w0, 0.2, [10**7], 20, l2=0.1, sampling=WITH, loss_variance=True)
    np.testing.assert_allclose(
        law["loss_variance_leading"][1:], 10**7 * large["loss_variance"].isel(batch_size=0)[1:], rtol=1e-5
    )


VALIDITY = sys.modules["shotnoise.predict.propagation.validity"]


@pytest.mark.parametrize(
    ("pairs", "probes"), [(600, None), pytest.param(60, 60), pytest.param(1500, 1500, marks=pytest.mark.slow)]
)
def test_the_next_order_of_a_linear_regression_is_exact_on_average(pairs, probes, monkeypatch):
    """There var(g) follows from second moments alone, which the trainings beside the law share with batches of any size."""
    rng, b, steps = np.random.default_rng(0), 8, 8
    x, y, w0 = rng.normal(size=(30, 20)), rng.normal(size=30), rng.normal(size=20)
    problem = sn.Problem(torch.nn.Linear(20, 1, bias=False, dtype=torch.float64), "mse", x, y[:, None], l2=0.1)
    monkeypatch.setattr(VALIDITY, "PAIRS" if probes else "PAIRS_TOGETHER", pairs)
    law = sn.predict.propagation(problem, w0, 0.1, steps, [b], probes, seed=1).isel(batch_size=0)
    exact = sn.predict.regression(x, y, w0, 0.1, [b], steps, l2=0.1, sampling=WITH).isel(batch_size=0)
    missed = float(exact["gradient_variance"][-1] / law["gradient_variance"][-1]) - 1
    found, error = float(law["next_order"]), float(law["next_order_stderr"])
    assert abs(found - missed) < 4 * error
    assert not abs(found) < 4 * error and law.attrs["valid_from"] == 0
    # only what is made at the last step: the noise over the weights that the law predicts there
    polynomials = sn.predict.regression_polynomial(x, y, w0, 0.1, steps, l2=0.1, sampling=WITH)
    gradient, full = (polynomials[name][-1].coefficients for name in ("gradient_variance", "full_gradient_variance"))
    assert not abs(found - 2 * missed) < 4 * error
    assert pairs < 600 or abs(found - (gradient[2] - full[2]) / gradient[1] / b) > 4 * error


def test_the_next_order_of_a_network_is_the_second_for_large_batches(monkeypatch):
    problem, b = small_problem(), 2**14
    monkeypatch.setattr(VALIDITY, "PAIRS_TOGETHER", 400)
    law = sn.predict.propagation(problem, None, 0.1, 3, [b])
    exact = sn.predict.propagation(problem, None, 0.1, 3, [b], order=2).isel(step=-1)
    second = float(exact["gradient_variance_second"] / exact["gradient_variance_leading"]) / b
    found, error = float(law["next_order"][0]), float(law["next_order_stderr"][0])
    assert abs(found - second) < 4 * error
    assert not abs(found - 2 * second) < 4 * error and not abs(found) < 4 * error


def test_the_next_order_knows_what_has_gathered_on_the_way():
    """Deviations that grow: at the last step alone the law looks good to 3 % at b = 16, and is three times the truth."""
    problem, sizes = transformer(4, 16), [16, 1024]
    law = sn.predict.propagation(problem, None, 0.3, 8, sizes)
    assert law.attrs["valid_from"] == 1024
    seen = sn.simulate(
        problem, sn.rules.SGD(0.3), [16], 8, 400, sampling=WITH, every=8, workers=1, record=["gradient_variance"]
    ).isel(step=-1, batch_size=0)
    missed = float(seen["gradient_variance"] / law["gradient_variance"][0, -1]) - 1
    found, error = float(law["next_order"][0]), float(law["next_order_stderr"][0])
    assert missed < -0.5 and found < -0.3 and abs(found - missed) < 4 * error


class OldKind(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h.tanh()

    @staticmethod
    def backward(ctx, slope):
        (h,) = ctx.saved_tensors
        return slope * (1 - h.tanh() ** 2)


class OldTanh(torch.nn.Module):
    def forward(self, h):
        return OldKind.apply(h)


def test_models_that_cannot_be_trained_side_by_side(monkeypatch):
    """Where torch.func refuses, one by one, beside deviations of their own: the same answer."""
    problem = small_problem()
    old = torch.nn.Sequential(problem.model[0], OldTanh(), problem.model[2])
    refused = sn.Problem(old, "mse", problem.samples.inputs, problem.samples.targets, l2=0.05)
    monkeypatch.setattr(VALIDITY, "PAIRS", 300)
    monkeypatch.setattr(VALIDITY, "PAIRS_TOGETHER", 300)
    together, single = (sn.predict.propagation(p, None, 0.1, 2, [4]) for p in (problem, refused))
    np.testing.assert_allclose(single["gradient_variance"], together["gradient_variance"], rtol=1e-12)
    apart = float(single["next_order"][0] - together["next_order"][0])
    error = np.hypot(float(single["next_order_stderr"][0]), float(together["next_order_stderr"][0]))
    assert abs(apart) < 4 * error < float(together["next_order"][0])
    recurrent = torch.nn.LSTM(2, 2)
    x = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))

    class Last(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = recurrent

        def forward(self, x):
            return self.inner(x.transpose(0, 1))[0][-1]

    monkeypatch.setattr(VALIDITY, "PAIRS", 6)
    law = sn.predict.propagation(sn.Problem(Last(), "mse", x, torch.ones(6, 2)), None, 0.1, 2, [4])
    assert np.isfinite(law["next_order"]).all() and law["next_order"][0] != 0


def test_each_pair_of_trainings_keeps_company_with_its_own_deviation(regression):
    """With little noise they are the same: nothing is left to chance, of which a few pairs would leave a third."""
    _, _, w0, problem = regression
    for probes in (None, 20):
        law = sn.predict.propagation(problem, w0, 0.2, 5, [10**8], probes)
        assert abs(float(law["next_order"][0])) < 1e-3 and float(law["next_order_stderr"][0]) < 1e-3


def test_the_variance_from_pairs():
    """Of a x + b (x^2 - 1) + c for normal x, a^2 + 2 b^2 by component."""
    a, b, c = (torch.tensor(values, dtype=torch.float64) for values in ([1.0, 2.0], [1.5, -1.0], [9.0, 9.0]))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(20_000, 1)))
    found = VALIDITY._variances(torch.stack([a * s * x + b * (x**2 - 1) + c for s in VALIDITY.SIGNS], 1))
    exact, error = float((a**2 + 2 * b**2).sum()), found.std() / len(found) ** 0.5
    assert abs(found.mean() - exact) < 4 * error < 0.1 * exact
    few = np.mean([VALIDITY._variances(torch.stack([b * (part**2 - 1)] * 2, 1)).mean() for part in x.split(4)])
    assert abs(few - float(2 * (b**2).sum())) < 0.3  # with the pairs' own mean: 3/4 of it without care


def test_trainings_beside_the_law_may_diverge():
    """Gradient descent gets down; one sample of twenty alone would not."""
    model = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(3)))
    for weight in model.parameters():
        torch.nn.init.ones_(weight)
    x = torch.full((20, 1), 0.1)
    x[0] = 6
    law = sn.predict.propagation(sn.Problem(model, "mse", x, torch.zeros(20, 1)), None, 0.1, 10, [1, 10**6])
    assert np.isinf(law["next_order"][0]) and np.isinf(law["next_order_stderr"][0])
    assert abs(float(law["next_order"][1])) < 0.1 and law.attrs["valid_from"] == 10**6


def test_probes_estimate_what_the_covariance_gives():
    problem = tanh_problem()
    dense = sn.predict.propagation(problem, None, 0.2, 12, [4])
    probed = sn.predict.propagation(problem, None, 0.2, 12, [4], probes=3000, seed=1)
    later = {"step": slice(1, None)}
    names = ["gradient_variance", "full_gradient_variance", "loss_variance"]
    verdict = sn.compare(dense.isel(later), probed.isel(later), variables=names, alarm=1e-6)
    assert verdict.agrees, verdict.sentence
    assert not sn.compare(1.15 * dense.isel(later), probed.isel(later), variables=names[1:], alarm=1e-6).agrees


def test_simulation_of_a_network_at_large_batches():
    """b var(g) / beta_1 tends to 1 as 1/b; without what the noise does to the weights it would not."""
    problem = tanh_problem()
    sizes = [25, 400]
    law = sn.predict.propagation(problem, None, 0.3, 12, sizes)
    runs = sn.simulate(
        problem, sn.rules.SGD(0.3), sizes, 12, 4000, sampling=WITH, every=12, workers=1,
        record=["gradient_variance", "full_gradient_variance"],
    )  # fmt: skip
    end, seen = law.isel(step=-1), runs.isel(step=-1)
    ratio = seen["full_gradient_variance"] / end["full_gradient_variance"]
    error = seen["full_gradient_variance_stderr"] / end["full_gradient_variance"]
    assert abs(float(ratio[1]) - 1) < 5 * float(error[1]) + 0.01
    verdict = sn.compare(
        end.isel(batch_size=[1]), seen.isel(batch_size=[1]), variables=["gradient_variance"], alarm=1e-6
    )
    assert verdict.agrees, verdict.sentence
    broken = end.assign(gradient_variance=end["gradient_variance"] - end["full_gradient_variance"])
    assert not sn.compare(
        broken.isel(batch_size=[1]), seen.isel(batch_size=[1]), variables=["gradient_variance"], alarm=1e-6
    ).agrees


def test_the_module_is_left_alone_and_single_precision_works():
    problem = tanh_problem(torch.float32)
    before = [p.clone() for p in problem.model.parameters()]
    law = sn.predict.propagation(problem, None, 0.1, 3, [2], probes=8)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.model.parameters(), strict=True))
    assert np.isfinite(law["gradient_variance"]).all() and law.attrs["probes"] == 8
    np.testing.assert_allclose(law["gradient_descent_loss"][0], problem.loss(), rtol=1e-6)


def test_nothing_random():
    """One sample, no step, or batches that are the whole data: the variances vanish, and so does the next order."""
    problem = small_problem(samples=1)
    for probes in (None, 8):
        law = sn.predict.propagation(problem, None, 0.1, 2, [3], probes, order=2, expected_loss=True)
        np.testing.assert_allclose(law["gradient_variance"], 0, atol=1e-12)
        np.testing.assert_allclose(law["loss"][0], law["gradient_descent_loss"], atol=1e-12)
    problem = small_problem()
    for order in (1, 2):
        law = sn.predict.propagation(problem, None, 0.1, 0, [8], sampling=WITHOUT, order=order)
        assert not law["gradient_variance"].any() and not law["next_order"].any() and law.attrs["valid_from"] == 8


class Branching(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) > 0 else -super().forward(x)


def test_refusals():
    problem = tanh_problem()
    with pytest.raises(sn.InputError, match="order=3: 1 for the leading term, 2 for the next one too"):
        sn.predict.propagation(problem, None, 0.1, 2, [2], order=3)
    x, y = torch.rand(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    branching = sn.Problem(Branching(1, 1, dtype=torch.float64), "mse", x, y)
    with pytest.raises(sn.InputError, match="give a number of probes, which need first derivatives only"):
        sn.predict.propagation(branching, None, 0.1, 2, [2], order=2)
    assert np.isfinite(sn.predict.propagation(branching, None, 0.1, 2, [2], 8, order=2)["gradient_variance"]).all()
    with pytest.raises(sn.InputError, match="w0: 26 finite numbers are needed"):
        sn.predict.propagation(problem, [1.0], 0.1, 2, [2])
    with pytest.raises(sn.InputError, match="probes=2: at least 8"):
        sn.predict.propagation(problem, None, 0.1, 2, [2], probes=2)
    with pytest.raises(sn.InputError, match="the law holds for fresh batches"):
        sn.predict.propagation(problem, None, 0.1, 2, [2], sampling=sn.sampling.CyclicEpochs())


LAYERED = ["layer_gradient_variance", "layer_full_gradient_variance"]


def test_probes_by_layer_and_of_the_expected_loss():
    problem = tanh_problem()
    dense = sn.predict.propagation(problem, None, 0.2, 6, [4], expected_loss=True)
    probed = sn.predict.propagation(problem, None, 0.2, 6, [4], probes=400, seed=2, expected_loss=True)
    np.testing.assert_allclose(dense["layer_gradient_variance"].sum("layer"), dense["gradient_variance"])
    np.testing.assert_allclose(probed["layer_gradient_variance"].sum("layer"), probed["gradient_variance"])
    assert dense["layer"].values.tolist() == list(problem.layers)
    later = {"step": slice(1, None)}
    names = [*LAYERED, "loss"]
    verdict = sn.compare(dense.isel(later), probed.isel(later), variables=names, alarm=1e-6)
    assert verdict.agrees, verdict.sentence
    plain = dense.assign(loss=dense["loss"] - dense["kappa"] * dense["loss_leading"])
    swapped = dense.isel(layer=[1, 0]).assign_coords(layer=dense["layer"])
    for broken, name in ((plain, "loss"), (swapped, LAYERED[0])):
        assert not sn.compare(broken.isel(later), probed.isel(later), variables=[name], alarm=1e-6).agrees


def test_loss_and_second_order_of_linear_regression(regression):
    """The expected loss and the coefficient of kappa^2, which third moments do not enter here."""
    x, y, w0, problem = regression
    law = sn.predict.propagation(problem, w0, 0.2, 20, [2, 5], sampling=WITHOUT, order=2, expected_loss=True)
    exact = sn.predict.regression_polynomial(x, y, w0, 0.2, 20, l2=0.1)
    for name in ("gradient_variance", "full_gradient_variance"):
        second = [p.coefficients[2] if len(p.coefficients) > 2 else 0.0 for p in exact[name]]
        np.testing.assert_allclose(law[f"{name}_second"], second, rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(law[f"{name}_skewness"], 0, atol=1e-13)
    leading = [p.coefficients[1] if len(p.coefficients) > 1 else 0.0 for p in exact["loss"]]
    np.testing.assert_allclose(law["loss_leading"], leading, rtol=1e-9, atol=1e-13)


def small_problem(samples=8):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(samples, k, generator=generator, dtype=torch.float64) for k in (2, 1))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)).double()
    return sn.Problem(model, "mse", x, y**3, l2=0.05)


COEFFICIENTS = [f"{name}_{term}" for name in ("gradient_variance", "full_gradient_variance", LAYERED[0])
                for term in ("second", "skewness")]  # fmt: skip


@pytest.mark.parametrize("probes", [100, pytest.param(600, marks=pytest.mark.slow)])
def test_weighted_trainings_estimate_the_second_order(probes):
    problem = small_problem()
    dense = sn.predict.propagation(problem, None, 0.2, 3, [4], order=2)
    probed = sn.predict.propagation(problem, None, 0.2, 3, [4], probes=probes, order=2, seed=3)
    later = {"step": slice(1, None)}
    verdict = sn.compare(dense.isel(later), probed.isel(later), variables=COEFFICIENTS, alarm=1e-6)
    assert verdict.agrees, verdict.sentence
    broken = dense.assign(gradient_variance_second=0 * dense["gradient_variance_second"])
    assert not sn.compare(
        broken.isel(later), probed.isel(later), variables=["gradient_variance_second"], alarm=1e-6
    ).agrees


class Cubature:
    """In place of random numbers: all combinations of six values that have the first five moments of N(0, 1)."""

    def normal(self, size):
        return np.array(list(product([-math.sqrt(3), 0, 0, 0, 0, math.sqrt(3)], repeat=size[1])))

    def integers(self, n, size):
        return np.arange(size) % n


def test_weighted_trainings_on_all_weights(monkeypatch):
    """After one step the second order asks for fourth moments of the weights, and for every sample as often."""
    # all weights are there: their mean is not an estimate
    monkeypatch.setattr(amplitudes, "_squares_about_mean", lambda draws: (draws - draws.mean(0)).square())
    problem = small_problem(samples=3)
    path = Path.of(problem, None)
    probed, exact = Amplitudes.start(path, 6**3, 0), SecondOrder.start(problem)
    probed.rng = Cubature()
    for each in (probed, exact):
        each.look(path)
        each.move(path, 0.2)
    path.move(0.2)
    found, expected = probed.look(path), exact.look(path)
    for name, value in expected.items():
        close = {"rtol": 1e-4, "atol": 1e-4 * abs(value).max()}  # the parts of a layer nearly cancel
        np.testing.assert_allclose(found[name], value, **close)
        assert not np.allclose(found[name], 1.001 * value, **close)


def test_weighted_trainings_separate_orders():
    """The parts by order of a value that is known: a polynomial in the amplitude."""
    h = amplitudes.RADIUS * torch.tensor(amplitudes.NORMAL, dtype=torch.float64)
    values = (2 * h - 3 * h**2 + 5 * h**3 + 7 * h**4)[None, :, None]
    for found, expected in zip(amplitudes._orders(values), (2, -3, 5), strict=True):
        assert float(found) == pytest.approx(expected, rel=1e-6)


def transformer(width, samples):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 5, width, generator=generator).double()
    y = torch.randn(samples, width, generator=generator).double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Attention(width).double()
    return sn.Problem(model, "mse", x, y)


@pytest.mark.parametrize(
    ("width", "probes", "runs", "b", "wrong"),
    [(4, None, 600, 32, 1.25), pytest.param(12, 256, 4000, 64, 2, marks=pytest.mark.slow)],
    ids=["154 weights", "834 weights"],
)
def test_simulation_of_a_transformer(width, probes, runs, b, wrong):
    """Attention, LayerNorm and GELU, where torch's own third derivatives would give another expected loss."""
    problem = transformer(width, 16)
    law = sn.predict.propagation(problem, None, 0.1, 4, [b], probes, expected_loss=True).isel(step=-1)
    seen = sn.simulate(
        problem, sn.rules.SGD(0.1), [b], 4, runs, sampling=WITH, every=4, workers=1,
        record=["gradient_variance", "full_gradient_variance", "loss"],
    ).isel(step=-1)  # fmt: skip
    losses = seen["loss"]
    seen = seen.drop_vars("loss").assign(loss=losses.mean("run"), loss_stderr=losses.std("run", ddof=1) / runs**0.5)
    assert law.attrs["valid_from"] == b
    names = ["gradient_variance", "full_gradient_variance", "loss"]
    verdict = sn.compare(law, seen, variables=names, alarm=1e-4)
    assert verdict.agrees, verdict.sentence
    broken = law.assign(
        gradient_variance=law["gradient_variance"] * 1.25,
        full_gradient_variance=law["full_gradient_variance"] * wrong,
        loss=law["gradient_descent_loss"].expand_dims(batch_size=[b]),
    )
    for name in names:
        assert not sn.compare(broken, seen, variables=[name], alarm=1e-4).agrees, name
