"""The variance of the loss: worked examples, the sampling's factors against counting, limits, refusals."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

import shotnoise as sn
from enumeration import RATES, W0, X, Y, disagreements, enumerated, predicted
from shotnoise.predict.linear_regression.fourth import Factors, factors

WITH, WITHOUT = sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement()


def test_the_worked_example():
    """variance-dynamics, Example 1: var L(w_1) = 13/72, 49/1152, 0 for b = 1, 2, 3."""
    result = sn.predict.regression(
        [[1.0], [2.0], [-1.0]], [1.0, 0.0, 1.0], [1.0], 0.25, [1, 2, 3], 1, loss_variance=True
    )
    found = result["loss_variance"].values
    np.testing.assert_allclose(found[:, 1], [13 / 72, 49 / 1152, 0], rtol=1e-13, atol=1e-16)
    assert (found[:, 0] == 0).all()  # the start is known


@pytest.mark.parametrize("replacement", [True, False], ids=["with", "without"])
@pytest.mark.parametrize(("n", "b"), [(2, 1), (2, 2), (3, 2), (5, 2), (5, 4), (6, 3)])
def test_moments_of_a_batch_mean_by_counting(n, b, replacement):
    """The mean of a batch of centred vectors: its second to fourth moment tensors against all batches."""
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, 2))
    a -= a.mean(0)
    batches = list(product(range(n), repeat=b) if replacement else combinations(range(n), b))
    means = np.array([a[list(batch)].mean(0) for batch in batches])
    T2, T3 = np.einsum("ip,iq->pq", a, a) / n, np.einsum("ip,iq,ir->pqr", a, a, a) / n
    T4 = np.einsum("ip,iq,ir,is->pqrs", a, a, a, a) / n
    twice = sum(np.einsum(f"{w[:2]},{w[2:]}->pqrs", T2, T2) for w in ("pqrs", "prqs", "psqr"))
    own = factors(WITH if replacement else WITHOUT, b, n)
    m = len(batches)
    np.testing.assert_allclose(np.einsum("ip,iq->pq", means, means) / m, own.pair * T2, atol=1e-14)
    np.testing.assert_allclose(np.einsum("ip,iq,ir->pqr", means, means, means) / m, own.triple * T3, atol=1e-14)
    fourth = np.einsum("ip,iq,ir,is->pqrs", means, means, means, means) / m
    np.testing.assert_allclose(fourth, own.quad * T4 + own.pairs * twice, atol=1e-14)


@pytest.mark.parametrize("name", ["triple", "quad", "pairs"])
def test_a_wrong_factor_is_found(name, monkeypatch):
    """The broken twins: each factor of the sampling off by a twentieth."""
    exact = enumerated(X, Y, W0, RATES, 2, WITH)

    def wrong(sampling, b, n):
        own = factors(sampling, b, n)
        return Factors(**{**vars(own), name: 1.05 * getattr(own, name)})

    monkeypatch.setattr("shotnoise.predict.linear_regression.fourth.factors", wrong)
    result = predicted(X, Y, W0, 2, WITH, {}, loss_variance=True)
    assert {variable for variable, _ in disagreements(result, exact)} == {"loss_variance"}


def test_it_may_rise_with_the_batch_size():
    """One of the quarter of small problems where it does (variance-dynamics, section 2)."""
    rng = np.random.default_rng(0)
    rising = 0
    for _ in range(40):
        x, y, w0 = rng.normal(size=(4, 1)), rng.normal(size=4), rng.normal(size=1)
        found = sn.predict.regression(x, y, w0, rng.uniform(0.2, 1.5), [1, 2, 3, 4], 1, loss_variance=True)
        rising += bool((np.diff(found["loss_variance"].values[:, 1]) > 1e-12).any())
    assert 3 <= rising <= 25


def test_more_features_than_samples_and_large_batches():
    rng = np.random.default_rng(1)
    x, y, w0 = rng.normal(size=(3, 5)), rng.normal(size=3), rng.normal(size=5)
    result = sn.predict.regression(x, y, w0, 0.1, [1, 2, 3], 3, loss_variance=True, l2=0.1)
    fractions = [
        [[Fraction(v) for v in row] for row in m] for m in (x.tolist(), y[:, None].tolist(), w0[None].tolist())
    ]
    exact = enumerated(*fractions, [Fraction(0.1)] * 3, 2, WITHOUT, l2=Fraction(0.1))
    assert disagreements(result.sel(batch_size=[2]), exact) == []
    assert (result["loss_variance"].sel(batch_size=3) == 0).all()


def test_what_costs_too_much_is_refused_with_its_cost():
    x = np.ones((500, 60))
    with pytest.raises(sn.InputError, match=r"loss_variance=True would take about .* operations and .* GiB"):
        sn.predict.regression(x, np.ones(500), np.zeros(60), 0.1, [1, 2], 1000, loss_variance=True)
