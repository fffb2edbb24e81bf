"""Exact moments of linear regression against the enumeration of all batch sequences, against simulation, and in limits."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shotnoise as sn
from shotnoise.predict.regression.least_squares import LeastSquares
from shotnoise.predict.regression.polynomial import fractions, in_inverse_batch, polynomials

WITH, WITHOUT = sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement()


def enumerated(x, y, w0, rates, b, replacement, s=None, l2=0, momentum=0, projection=None):
    """By the definition, with Fractions: every sequence of batches, step by step. Returns one dict per step."""
    n, p, k = len(x), len(x[0]), len(y[0])
    s = [Fraction(1)] * n if s is None else s
    rows = [[Fraction(int(i == j)) for j in range(p)] for i in range(p)] if projection is None else projection
    batches = list(product(range(n), repeat=b)) if replacement else list(combinations(range(n), b))

    def gradient(w, batch):
        g = [[l2 * w[a][j] for j in range(p)] for a in range(k)]
        for i in batch:
            for a in range(k):
                r = sum(w[a][j] * x[i][j] for j in range(p)) - y[i][a]
                for j in range(p):
                    g[a][j] += s[i] * r * x[i][j] / len(batch)
        return g

    def loss(w):
        data = sum(
            s[i] * (sum(w[a][j] * x[i][j] for j in range(p)) - y[i][a]) ** 2 for i in range(n) for a in range(k)
        ) / (2 * n)
        return data + l2 * sum(v**2 for row in w for v in row) / 2

    def projected(g):
        return [sum(row[j] * g[a][j] for j in range(p)) for a in range(k) for row in rows]

    def variance(vectors):
        count = len(vectors)
        mean = [sum(column) / count for column in zip(*vectors, strict=True)]
        return sum(sum(v**2 for v in vector) for vector in vectors) / count - sum(m**2 for m in mean)

    states = [(w0, [[Fraction(0)] * p for _ in range(k)])]
    found = []
    for t in range(len(rates) + 1):
        drawn = [gradient(w, batch) for w, _ in states for batch in batches]
        full = [gradient(w, range(n)) for w, _ in states]
        found.append({
            "gradient_variance": variance([projected(g) for g in drawn]),
            "full_gradient_variance": variance([projected(g) for g in full]),
            "loss": sum(loss(w) for w, _ in states) / len(states),
            "gradient_norm_sq": sum(v**2 for g in full for row in g for v in row) / len(full),
            "weights_variance": variance([[v for row in w for v in row] for w, _ in states]),
            "mean_weights": [sum(w[a][j] for w, _ in states) / len(states) for a in range(k) for j in range(p)],
        })  # fmt: skip
        if t < len(rates):
            moved = []
            for w, m in states:
                for batch in batches:
                    g = gradient(w, batch)
                    v = [[momentum * m[a][j] + g[a][j] for j in range(p)] for a in range(k)]
                    moved.append(([[w[a][j] - rates[t] * v[a][j] for j in range(p)] for a in range(k)], v))
            states = moved
    return found


X = [[Fraction(1), Fraction(2)], [Fraction(-1), Fraction(1)], [Fraction(3), Fraction(-1)]]
Y = [[Fraction(1)], [Fraction(2)], [Fraction(-1)]]
Y2 = [[Fraction(1), Fraction(0)], [Fraction(2), Fraction(-1)], [Fraction(-1), Fraction(2)]]
W0, W2 = [[Fraction(1), Fraction(-1)]], [[Fraction(1), Fraction(-1)], [Fraction(0), Fraction(2)]]
RATES = [Fraction(1, 4), Fraction(1, 5)]
CASES = {
    "plain": {},
    "l2": {"l2": Fraction(1, 3)},
    "negative l2": {"l2": Fraction(-1, 7)},
    "weights": {"s": [Fraction(1), Fraction(2), Fraction(1, 2)]},
    "momentum": {"momentum": Fraction(1, 2)},
    "projection": {"projection": [[Fraction(1), Fraction(2)]]},
    "all": {
        "l2": Fraction(1, 3),
        "s": [Fraction(1), Fraction(2), Fraction(1, 2)],
        "momentum": Fraction(1, 3),
        "projection": [[Fraction(1), Fraction(-1)], [Fraction(0), Fraction(1)]],
    },
}


def predicted(x, y, w0, b, replacement, case):
    options = {"l2": float(case.get("l2", 0)), "momentum": float(case.get("momentum", 0))}
    if "s" in case:
        options["weights"] = np.array(case["s"], float)
    if "projection" in case:
        options["projection"] = np.array(case["projection"], float)
    return sn.predict.regression(
        np.array(x, float), np.array(y, float), np.array(w0, float), [float(a) for a in RATES], [b], len(RATES),
        sampling=WITH if replacement else WITHOUT, **options,
    )  # fmt: skip


def disagreements(result, exact):
    wrong = []
    for t, values in enumerate(exact):
        for name, value in values.items():
            found = result[name].sel(step=t).values.ravel()
            if not np.allclose(found, np.array(value, float).ravel(), rtol=1e-12, atol=1e-12):
                wrong.append((name, t))
    return wrong


@pytest.mark.parametrize("replacement", [False, True], ids=["without", "with"])
@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_every_sequence_of_batches(name, b, replacement):
    case = CASES[name]
    exact = enumerated(X, Y, W0, RATES, b, replacement, **case)
    assert disagreements(predicted(X, Y, W0, b, replacement, case), exact) == []


@pytest.mark.parametrize("replacement", [False, True], ids=["without", "with"])
def test_several_outputs_share_their_batches(replacement):
    exact = enumerated(X, Y2, W2, RATES, 2, replacement)
    assert disagreements(predicted(X, Y2, W2, 2, replacement, {}), exact) == []


@pytest.mark.parametrize("change", ["sampling", "l2", "momentum", "s"])
def test_the_enumeration_tells_a_wrong_convention(change):
    """The broken twins: the other sampling, and each option left out."""
    case = CASES["all"]
    exact = enumerated(X, Y, W0, RATES, 2, False, **case)
    other = {k: v for k, v in case.items() if k != change}
    assert disagreements(predicted(X, Y, W0, 2, change == "sampling", other), exact)


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


def test_polynomials_are_the_exact_ones_of_the_example():
    """variance-dynamics, Example 1: x = (1, 2, -1), y = (1, 0, 1), w0 = 1, a = 1/4."""
    problem = LeastSquares(fractions([[1], [2], [-1]]), fractions([[1], [0], [1]]), fractions([1, 1, 1]), 0)
    found = polynomials(problem, fractions([[1]]), [Fraction(1, 4)] * 2)
    third, half = Fraction(1, 3), Fraction(1, 2)
    assert list(found.gradient_variance[1]) == [0, Fraction(11, 6), third]
    assert list(found.gradient_variance[2]) == [0, Fraction(5, 4), Fraction(5, 16), Fraction(1, 24)]
    assert list(found.full_gradient_variance[1]) == [0, Fraction(2, 3)]
    assert list(found.loss[1]) == [Fraction(7, 12), Fraction(1, 6)]
    inverse = in_inverse_batch(found.gradient_variance[1], 3)
    assert sum(inverse) == Fraction(13, 6) and sum(c * half**j for j, c in enumerate(inverse)) == Fraction(23, 48)
    assert sum(c * third**j for j, c in enumerate(inverse)) == 0  # the batch is all the data


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


@given(seed=st.integers(0, 2**31), b=st.integers(1, 7), steps=st.integers(0, 6))
@settings(deadline=None, max_examples=25)
def test_polynomials_and_recursion_agree_and_fall_with_the_batch(seed, b, steps):
    rng = np.random.default_rng(seed)
    x, y, w0 = rng.normal(size=(7, 3)), rng.normal(size=(7, 1)), rng.normal(size=(1, 3))
    rates = rng.uniform(0, 0.4, size=steps)
    found = polynomials(LeastSquares(x, y, np.ones(7), 0.1), w0, rates)
    result = sn.predict.regression(x, y, w0, rates, list(range(1, 8)), steps, l2=0.1)
    kappa = WITHOUT.variance_factor(b, 7)
    for name in ("gradient_variance", "full_gradient_variance", "loss", "gradient_norm_sq"):
        coefficients = getattr(found, name)
        assert len(coefficients[steps]) == steps + (2 if name == "gradient_variance" else 1)
        assert (coefficients[steps] >= -1e-12).all()
        value = np.polynomial.Polynomial(coefficients[steps])(kappa)
        assert value == pytest.approx(float(result[name].sel(batch_size=b, step=steps)), rel=1e-9, abs=1e-12)
        assert (np.diff(result[name].isel(step=steps)) <= 1e-12).all()  # Theorem 2, non-increasing in b
    assert float(abs(result["gradient_variance"].sel(batch_size=7)).max()) < 1e-12


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
        with pytest.raises(sn.InputError, match="successive batches are not independent"):
            self.call(sampling=sn.sampling.ReshuffledEpochs())
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
