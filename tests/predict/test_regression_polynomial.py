"""Explicit polynomials: the worked example in fractions, enumeration, agreement with the recursion, b_0."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shotnoise as sn
from enumeration import RATES, W0, W2, Y2, X, Y, enumerated
from shotnoise.predict import BatchPolynomial

WITH, WITHOUT = sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement()
EXAMPLE = ([[1], [2], [-1]], [1, 0, 1], [1], Fraction(1, 4))


def test_the_worked_example():
    """variance-dynamics, Example 1: x = (1, 2, -1), y = (1, 0, 1), w0 = 1, a = 1/4."""
    found = sn.predict.regression_polynomial(*EXAMPLE, 2, exact=True)
    third = Fraction(1, 3)
    variance = found["gradient_variance"]
    assert variance[1].coefficients.tolist() == [0, Fraction(11, 6), third]
    assert variance[2].coefficients.tolist() == [0, Fraction(5, 4), Fraction(5, 16), Fraction(1, 24)]
    assert found["full_gradient_variance"][1].coefficients.tolist() == [0, Fraction(2, 3)]
    assert found["loss"][1].coefficients.tolist() == [Fraction(7, 12), Fraction(1, 6)]
    assert [variance[1](b) for b in (1, 2, 3)] == [Fraction(13, 6), Fraction(23, 48), 0]
    inverse = sn.predict.regression_polynomial(*EXAMPLE, 2, exact=True, variable="1/b")["gradient_variance"][1]
    assert [inverse(b) for b in (1, 2, 3)] == [Fraction(13, 6), Fraction(23, 48), 0]
    assert inverse.coefficients[0] != 0 and inverse.variable == "1/b"  # without replacement there is a constant term
    assert [p.degree for p in variance] == [1, 2, 3] and [p.degree for p in found["loss"]] == [0, 1, 2]
    assert found.relative_error is None and variance[2].decreasing_beyond == 1


@pytest.mark.parametrize("sampling", [WITHOUT, WITH], ids=repr)
@pytest.mark.parametrize("b", [1, 2])
def test_fractions_equal_the_enumeration_exactly(b, sampling):
    options = {"l2": Fraction(1, 3), "momentum": Fraction(1, 3), "projection": [[Fraction(1), Fraction(-1)]]}
    weights = [Fraction(1), Fraction(2), Fraction(1, 2)]
    exact = enumerated(X, Y2, W2, RATES, b, sampling, s=weights, **options)
    found = sn.predict.regression_polynomial(
        X, Y2, W2, RATES, len(RATES), sampling=sampling, weights=weights, exact=True, **options
    )
    for name, polynomials in found.polynomials.items():
        for t, polynomial in enumerate(polynomials):
            assert polynomial(b) == exact[t][name], (name, t)
            assert (polynomial.coefficients >= 0).all()


@given(seed=st.integers(0, 2**31), b=st.integers(1, 7), steps=st.integers(0, 6), momentum=st.sampled_from([0.0, 0.4]))
@settings(deadline=None, max_examples=25)
def test_polynomials_and_recursion_agree_and_fall_with_the_batch(seed, b, steps, momentum):
    rng = np.random.default_rng(seed)
    x, y, w0 = rng.normal(size=(7, 3)), rng.normal(size=7), rng.normal(size=3)
    rates = rng.uniform(0, 0.4, size=steps)
    options = {"l2": 0.1, "momentum": momentum}
    found = sn.predict.regression_polynomial(x, y, w0, rates, steps, **options)
    assert found.relative_error < 1e-9
    result = sn.predict.regression(x, y, w0, rates, list(range(1, 8)), steps, **options)
    for name, polynomials in found.polynomials.items():
        own = polynomials[steps]
        assert len(own.coefficients) == steps + (2 if name == "gradient_variance" else 1)
        assert (own.coefficients >= -1e-12).all()
        assert own(b) == pytest.approx(float(result[name].sel(batch_size=b, step=steps)), rel=1e-9, abs=1e-12)
        assert (np.diff(result[name].isel(step=steps)) <= 1e-12).all()  # Theorem 2, non-increasing in b
    leading = [p.coefficients[1] for p in found["gradient_variance"]]
    np.testing.assert_allclose(leading, result["gradient_variance_leading"], rtol=1e-10, atol=1e-14)
    assert float(abs(result["gradient_variance"].sel(batch_size=7)).max()) < 1e-12


def test_the_error_estimate_sees_a_wrong_coefficient(monkeypatch):
    """The broken twin: a polynomial off in one power no longer meets the recursion."""
    import shotnoise.predict.linear_regression.polynomial as module

    right = module._coefficients

    def wrong(*arguments):
        for row in right(*arguments):
            row["loss"][-1] *= 1.01
            yield row

    monkeypatch.setattr(module, "_coefficients", wrong)
    assert sn.predict.regression_polynomial(*EXAMPLE, 2).relative_error > 1e-4


def test_as_a_dataset():
    found = sn.predict.regression_polynomial(*EXAMPLE, 2)
    table = found.to_dataset()
    assert table["gradient_variance"].dims == ("step", "power") and table.sizes == {"step": 3, "power": 4}
    assert float(table["gradient_variance"].sel(step=2, power=3)) == pytest.approx(1 / 24)
    assert table.attrs["polynomial_in"] == "kappa" and table.attrs["relative_error"] < 1e-12
    with pytest.raises(sn.InputError, match="no polynomials of 'accuracy'"):
        found["accuracy"]


class TestBatchPolynomial:
    def test_where_it_begins_to_fall(self):
        """variance-dynamics, Example 3: V = 12, 17, 7324/729, 105/16; V' = 0 at b_0 = 1.585, though V has no root."""
        p = BatchPolynomial(np.array([Fraction(c) for c in (0, 20, -20, 260, -280, -224, 256)], dtype=object))
        assert [p(b) for b in (1, 2, 3, 4)] == [12, 17, Fraction(7324, 729), Fraction(105, 16)]
        assert p.decreasing_beyond == pytest.approx(1.585, abs=5e-4)
        above, below = p.decreasing_beyond + 1e-6, p.decreasing_beyond - 1e-6
        assert p(Fraction(above)) > p(Fraction(above + 1e-3)) and p(Fraction(below)) > p(Fraction(below - 1e-3))

    def test_touching_zero_is_not_a_fall(self):
        """V' = (u - 1/2)^2 only touches zero; V' = (u - 1/2)^3 (u - 3/4) changes sign twice."""
        touching = [Fraction(0), Fraction(1, 4), Fraction(-1, 2), Fraction(1, 3)]
        assert BatchPolynomial(np.array(touching, dtype=object)).decreasing_beyond == 1
        slope = np.polynomial.Polynomial([-0.5, 1.0]) ** 3 * np.polynomial.Polynomial([-0.75, 1.0])
        changing = [Fraction(0), *(Fraction(c) / (k + 1) for k, c in enumerate(slope.coef.tolist()))]
        assert BatchPolynomial(np.array(changing, dtype=object)).decreasing_beyond == pytest.approx(2, rel=1e-9)

    def test_rising_to_the_end_and_constants(self):
        assert BatchPolynomial(np.array([1.0, -1.0])).decreasing_beyond == np.inf
        assert BatchPolynomial(np.array([3.0])).decreasing_beyond == 1
        assert BatchPolynomial(np.array([0.0, 1.0]), "1/b", n=4)([1, 4]).tolist() == [1.0, 0.25]

    def test_b_0_is_the_same_in_either_variable(self):
        kappa = BatchPolynomial(np.array([Fraction(0), Fraction(1), Fraction(-1)], dtype=object), "kappa", n=5)
        # V' = 0 at kappa = 1/2: (5 - b) / (4 b) = 1/2
        assert kappa.decreasing_beyond == pytest.approx(5 / 3) == kappa.in_inverse_batch().decreasing_beyond

    def test_refusals(self):
        with pytest.raises(sn.InputError, match="batch_size=6: from 1 to 5"):
            BatchPolynomial(np.ones(2), "kappa", n=5)(6)
        with pytest.raises(sn.InputError, match="variable='b'"):
            BatchPolynomial(np.ones(2), "b")


def test_refusals():
    with pytest.raises(sn.InputError, match="no polynomials in the batch size"):
        sn.predict.regression_polynomial(*EXAMPLE, 2, sampling=sn.sampling.CyclicEpochs())
    with pytest.raises(sn.InputError, match=r"polynomials for 20000 steps take about .* Ask for fewer steps"):
        sn.predict.regression_polynomial(np.ones((500, 8)), np.ones(500), np.zeros(8), 0.1, 20_000)
    with pytest.raises(sn.InputError, match="exact arithmetic needs rational numbers"):
        sn.predict.regression_polynomial(X, Y, W0, "a third", 2, exact=True)
    with pytest.raises(sn.InputError, match="one value for each of 3 updates, none negative"):
        sn.predict.regression_polynomial(X, Y, W0, RATES, 3, exact=True)
