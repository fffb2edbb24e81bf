"""Exact moments of linear regression against the enumeration of all batch sequences, against simulation, and in limits."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import shotnoise as sn
from enumeration import RATES, W0, W2, Y2, X, Y, disagreements, enumerated, predicted

WITH, WITHOUT = sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement()


COMBINATION = [[[Fraction(i + j + 1, 2), Fraction(i - 2 * j)] for j in range(3)] for i in range(3)]  # (n, q, p)
CASES = {
    "plain": {},
    "l2": {"l2": Fraction(1, 3)},
    "negative l2": {"l2": Fraction(-1, 7)},
    "weights": {"s": [Fraction(1), Fraction(2), Fraction(1, 2)]},
    "momentum": {"momentum": Fraction(1, 2)},
    "projection": {"projection": [[Fraction(1), Fraction(2)]]},
    "combination": {"combination": COMBINATION},
    "all": {
        "combination": COMBINATION,
        "l2": Fraction(1, 3),
        "s": [Fraction(1), Fraction(2), Fraction(1, 2)],
        "momentum": Fraction(1, 3),
        "projection": [[Fraction(1), Fraction(-1)], [Fraction(0), Fraction(1)]],
    },
}


@pytest.mark.parametrize("sampling", [WITHOUT, WITH], ids=repr)
@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_every_sequence_of_batches(name, b, sampling):
    case = CASES[name]
    exact = enumerated(X, Y, W0, RATES, b, sampling, **case)
    assert disagreements(predicted(X, Y, W0, b, sampling, case, loss_variance=True), exact) == []


@pytest.mark.parametrize("sampling", [WITHOUT, WITH], ids=repr)
def test_several_outputs_share_their_batches(sampling):
    exact = enumerated(X, Y2, W2, RATES, 2, sampling)
    assert disagreements(predicted(X, Y2, W2, 2, sampling, {}, loss_variance=True), exact) == []


@pytest.mark.parametrize("change", ["sampling", "l2", "momentum", "s"])
def test_the_enumeration_tells_a_wrong_convention(change):
    """The broken twins: the other sampling, and each option left out."""
    case = CASES["all"]
    exact = enumerated(X, Y, W0, RATES, 2, WITHOUT, **case)
    other = {k: v for k, v in case.items() if k != change}
    assert disagreements(predicted(X, Y, W0, 2, WITH if change == "sampling" else WITHOUT, other), exact)


def test_more_features_than_samples_is_the_same_in_the_row_space():
    rng = np.random.default_rng(0)
    x, y, w0 = rng.normal(size=(6, 20)), rng.normal(size=6), rng.normal(size=20)
    options = {"l2": 0.3, "momentum": 0.4, "projection": rng.normal(size=(3, 20))}
    few = sn.predict.regression(x, y, w0, 0.05, [1, 3], 30, **options)
    doubled = np.concatenate([x] * 4), np.concatenate([y] * 4)  # the same problem with n > p: kappa is that of 1/b
    for b in (1, 3):
        args = (w0, 0.05, [b], 30)
        with_ = sn.predict.regression(x, y, *args, sampling=WITH, **options)
        many = sn.predict.regression(*doubled, *args, sampling=WITH, **options)
        for name in with_.data_vars:
            np.testing.assert_allclose(with_[name], many[name], rtol=1e-9, atol=1e-12, err_msg=str(name))
    assert float(few["gradient_variance"].sel(batch_size=3, step=5)) > 0


def test_the_printed_lemma_2_fails_where_the_corrected_one_holds():
    """E||grad L(w_1)||^2 = 5/3 at b = 1; the lemma as printed gives 37/9 (its statement) or 7/3 (its appendix)."""
    x, y = np.array([1.0, 2.0, -1.0]), np.array([1.0, 0.0, 1.0])
    result = sn.predict.regression(x[:, None], y, [1.0], 0.25, [1], 1)
    truth = float(result["gradient_norm_sq"].sel(step=1, batch_size=1))
    assert truth == pytest.approx(5 / 3, rel=1e-14)

    def lemma(factor, sign):
        """E||A grad L||^2 + factor alpha^2 c_b / n^2 sum_kl ||B^kl (grad L_k, grad L_l)||^2 at w_0, n = 3, c_1 = 1."""
        g, c, a = x * (x - y), np.mean(x**2), 0.25
        pairs = sum((c * (g[k] + sign * g[i])) ** 2 for k in range(3) for i in range(3) if i != k)
        same = 0 if sign < 0 else sum((2 * c * g[k]) ** 2 for k in range(3))
        return ((1 - a * c) * g.mean()) ** 2 + factor * a**2 / 9 * (pairs + same)

    assert lemma(0.5, -1) == pytest.approx(truth, rel=1e-12)
    assert lemma(1.0, -1) == pytest.approx(7 / 3, rel=1e-12) and abs(lemma(1.0, -1) - truth) > 0.5


@pytest.fixture(scope="module")
def both():
    """2,000 runs of the engine, and the theory."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=12)
    model = torch.nn.Linear(3, 1, dtype=torch.float64)
    torch.nn.init.constant_(model.weight, 0.5)
    torch.nn.init.constant_(model.bias, -0.5)
    problem = sn.Problem(model, "mse", x, y[:, None], l2=0.05)
    rule, names = sn.rules.SGD(sn.schedules.InverseTime(0.2, 0.05), momentum=0.6), ["loss", "gradient_norm_sq"]
    statistics = ["gradient_variance", "full_gradient_variance"]
    runs = sn.simulate(
        problem, rule, [2, 6], 40, 2000, sampling=WITHOUT, record=names + statistics, every=5, seed=11, workers=1
    )
    theory = sn.predict.regression(
        x, y, [0.5, 0.5, 0.5, -0.5], rule.learning_rate, [2, 6], 40, intercept=True, l2=0.05, momentum=0.6
    )
    steps = runs["step"].values[1:]
    return sn.simulate.summary(runs).sel(step=steps), theory.sel(step=steps)


class TestAgainstSimulation:
    """The prediction is inside, the wrong one outside."""

    def test_they_agree(self, both):
        simulated, theory = both
        variables = ["loss", "gradient_norm_sq", "gradient_variance", "full_gradient_variance"]
        verdict = sn.compare(theory, simulated, variables=variables, alarm=1e-6)
        assert verdict.agrees, verdict.sentence

    @pytest.mark.parametrize("factor", [0.9, 1.12])
    def test_a_tenth_more_or_less_is_rejected(self, both, factor):
        simulated, theory = both
        assert not sn.compare(factor * theory, simulated, variables=["gradient_variance"], alarm=1e-6).agrees


class TestRefusals:
    ARGS = (np.eye(3), np.ones(3), np.zeros(3), 0.1, [1], 2)

    def call(self, position=None, value=None, **options):
        args = list(self.ARGS)
        if position is not None:
            args[position] = value
        return sn.predict.regression(*args, **options)

    @pytest.mark.parametrize(
        ("position", "value", "message"),
        [
            (0, np.full((3, 3), np.nan), r"X\[0, 0\] is nan: 9 entries of X are not finite"),
            (0, np.ones(3), r"X: a matrix \(samples, features\) is needed"),
            (1, np.ones(4), r"y: 3 targets .* are needed for X \(3, 3\); got \(4,\)"),
            (1, np.array([0, np.inf, 0]), r"y\[1, 0\] is inf"),
            (2, np.zeros(4), r"w0: 3 weights for each of 1 outputs are needed, \(1, 3\); got an array \(4,\)"),
            (3, -0.1, "learning_rate"),
            (4, [4], "batch_size=4 but only n=3 samples"),
            (4, [], "give at least one"),
        ],
    )
    def test_what_does_not_fit(self, position, value, message):
        with pytest.raises(sn.ShotnoiseError, match=message):
            self.call(position, value)

    def test_options(self):
        with pytest.raises(sn.InputError, match="momentum=1.0: at least 0 and below 1"):
            self.call(momentum=1.0)
        with pytest.raises(
            sn.InputError, match=r"combination: one finite matrix per sample is needed, \(3, q, 3\); got \(3, 3\)"
        ):
            self.call(combination=np.eye(3))
        with pytest.raises(sn.InputError, match="runs=500: with .* the answer is exact"):
            self.call(runs=500)
        with pytest.raises(sn.InputError, match=r"projection: a finite matrix \(q, 3\) is needed; got \(2, 2\)"):
            self.call(projection=np.eye(2))
        with pytest.raises(sn.InputError, match="weights: 3 finite numbers that are not negative"):
            self.call(weights=[1, -1, 1])

    def test_what_blows_up_says_when_and_keeps_what_came_before(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(5, 2)), rng.normal(size=5)
        result = sn.predict.regression(x, y, np.ones(2), 50.0, [1, 5], 400)
        step = int(result["overflow_step"].sel(batch_size=1))
        values = result["gradient_variance"].sel(batch_size=1).values
        assert 0 < step < 400 and np.isfinite(values[:step]).all() and np.isinf(values[step:]).all()


class TestDifficultData:
    """Precision and rank: the recursion against exact fractions, not against itself."""

    def exact(self, x, y, w0, rate, steps, b, sampling):
        as_fractions = [[[Fraction(v) for v in row] for row in m.tolist()] for m in (x, y[:, None], w0[None])]
        return enumerated(*as_fractions, [Fraction(rate)] * steps, b, sampling)

    @pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
    def test_badly_conditioned(self, scale):
        rng = np.random.default_rng(0)
        x = np.column_stack([rng.normal(size=4), scale * rng.normal(size=4)])  # condition number of C: scale^-2
        y, w0 = rng.normal(size=4), rng.normal(size=2)
        result = sn.predict.regression(x, y, w0, 0.3, [2], 2, loss_variance=True)
        assert disagreements(result, self.exact(x, y, w0, 0.3, 2, 2, WITHOUT)) == []

    def test_rank_deficient(self):
        rng = np.random.default_rng(1)
        x = rng.normal(size=(4, 1)) @ rng.normal(size=(1, 3))
        y, w0 = rng.normal(size=4), rng.normal(size=3)
        result = sn.predict.regression(x, y, w0, 0.2, [1], 2, sampling=WITH, loss_variance=True)
        assert disagreements(result, self.exact(x, y, w0, 0.2, 2, 1, WITH)) == []

    def test_a_perfect_fit_has_no_noise_once_it_is_reached(self):
        rng = np.random.default_rng(2)
        x, w = rng.normal(size=(8, 3)), rng.normal(size=3)
        result = sn.predict.regression(x, x @ w, w, 0.1, [1, 4], 20)
        assert float(result["gradient_variance"].max()) < 1e-28 and float(result["loss"].max()) < 1e-28

    def test_single_precision_in_is_the_same_numbers_in_double(self):
        rng = np.random.default_rng(3)
        x, y = rng.normal(size=(9, 2)).astype(np.float32), rng.normal(size=9).astype(np.float32)
        single = sn.predict.regression(x, y, np.ones(2, np.float32), 0.1, [2], 10)
        double = sn.predict.regression(x.astype(float), y.astype(float), np.ones(2), 0.1, [2], 10)
        assert single.equals(double) and single["loss"].dtype == np.float64

    def test_zeros_and_one_sample(self):
        flat = sn.predict.regression(np.zeros((2, 3)), [1.0, 2.0], np.ones(3), 0.1, [1], 3)
        assert float(flat["gradient_variance"].max()) == 0 and float(flat["loss"][0, -1]) == pytest.approx(1.25)
        one = sn.predict.regression([[2.0]], [1.0], [0.0], 0.1, [1], 3)
        assert float(one["gradient_variance"].max()) == 0


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 9))])
def test_random_problems_against_runs(seed):
    """Shapes, schedules, momentum, penalty, sampling and precision drawn at random; 1e-5 false alarms each."""
    rng = np.random.default_rng(seed)
    n, p, k, b = (int(rng.integers(*ends)) for ends in ((5, 30), (1, 7), (1, 3), (2, 5)))
    sampling = [WITH, WITHOUT][rng.integers(2)]
    x, y = rng.normal(size=(n, p)), rng.normal(size=(n, k))
    dtype = [torch.float32, torch.float64][rng.integers(2)]
    model = torch.nn.Linear(p, k, dtype=dtype)
    l2, momentum = float(rng.uniform(0, 0.2)), float(rng.uniform(0, 0.8))
    limit = sn.predict.regression_stability(x, [b], sampling=sampling, intercept=True, l2=l2, momentum=momentum)
    rule = sn.rules.SGD(
        sn.schedules.InverseTime(0.4 * limit["critical_learning_rate"].item(), float(rng.uniform(0, 0.1))),
        momentum=momentum,
    )
    problem = sn.Problem(model, "mse", torch.tensor(x, dtype=dtype), torch.tensor(y, dtype=dtype), l2=l2)
    names = ["loss", "gradient_norm_sq", "gradient_variance", "full_gradient_variance"]
    runs = sn.simulate(problem, rule, [b], 20, 2000, sampling=sampling, record=names, every=5, seed=seed, workers=1)
    start = np.column_stack([model.weight.detach().double(), model.bias.detach().double()])
    theory = sn.predict.regression(
        x, y, start, rule.learning_rate, [b], 20, intercept=True, l2=l2, momentum=momentum, sampling=sampling
    )
    later = runs["step"].values[1:]
    verdict = sn.compare(theory.sel(step=later), sn.simulate.summary(runs).sel(step=later), variables=names, alarm=1e-5)
    assert verdict.agrees, verdict.sentence
