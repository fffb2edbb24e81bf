"""Epochs: exact moments over all used sets or all orders against enumeration; estimates from runs against the exact."""

from fractions import Fraction

import numpy as np
import pytest

import shotnoise as sn
from enumeration import disagreements, enumerated, predicted

RESHUFFLED, CYCLIC = sn.sampling.ReshuffledEpochs(), sn.sampling.CyclicEpochs()
X = [[Fraction(1), Fraction(2)], [Fraction(-1), Fraction(1)], [Fraction(3), Fraction(-1)], [Fraction(0), Fraction(1)]]
Y = [[Fraction(1)], [Fraction(2)], [Fraction(-1)], [Fraction(1, 2)]]
W0 = [[Fraction(1), Fraction(-1)]]
RATES = [Fraction(1, 4), Fraction(1, 5), Fraction(1, 6), Fraction(1, 7)]
CASES = {
    "plain": {},
    "all": {
        "l2": Fraction(1, 3),
        "s": [Fraction(1), Fraction(2), Fraction(1, 2), Fraction(1)],
        "momentum": Fraction(1, 3),
        "projection": [[Fraction(1), Fraction(-1)]],
    },
}


@pytest.mark.parametrize("sampling", [RESHUFFLED, CYCLIC], ids=repr)
@pytest.mark.parametrize("b", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_every_order(name, b, sampling):
    """Four samples: b = 3 drops one of them in every epoch."""
    rates = RATES[:3] if b == 1 else RATES
    case = CASES[name]
    exact = enumerated(X, Y, W0, rates, b, sampling, **case)
    assert disagreements(predicted(X, Y, W0, b, sampling, case, rates), exact) == []
    other = CYCLIC if sampling is RESHUFFLED else RESHUFFLED
    if len(rates) >= 4 // b + 1:  # the second epoch tells the two apart
        assert disagreements(predicted(X, Y, W0, b, other, case, rates), exact)


def test_the_example_where_the_variance_rises_with_the_batch():
    """One feature, four samples: after three steps 33823/7776 at b = 1 and more at b = 2, by enumeration of the orders."""
    x, y = np.array([[1.0], [-0.5], [3.0], [-1.0]]), np.array([-2.0, -1.0, -2.0, 1.0])
    result = sn.predict.regression(x, y, [1.0], 1 / 3, [1, 2, 4], 3, sampling=RESHUFFLED)
    values = result["gradient_variance"].sel(step=3).values
    assert values[0] == pytest.approx(33823 / 7776, rel=1e-12) and values[1] == pytest.approx(
        5.378535864466193, rel=1e-12
    )
    assert values[2] == pytest.approx(0, abs=1e-12)
    report = sn.predict.batch_size_report(result)
    assert not report["is_decreasing"].sel(quantity="gradient_variance") and "law_ratio" not in report


def test_a_dozen_samples_over_several_epochs():
    """The first step is that of fresh batches; a fresh-batch theory fails later on."""
    rng = np.random.default_rng(0)
    x, y, w0 = rng.normal(size=(12, 3)), rng.normal(size=12), rng.normal(size=3)
    epochs = sn.predict.regression(x, y, w0, 0.1, [3, 4], 12, sampling=RESHUFFLED)
    fresh = sn.predict.regression(x, y, w0, 0.1, [3, 4], 12)
    for name in ("gradient_variance", "loss"):
        np.testing.assert_allclose(epochs[name][:, :2], fresh[name][:, :2] if name == "loss" else epochs[name][:, :2])
        assert abs(epochs[name][0, 9] / fresh[name][0, 9] - 1) > 1e-3
    np.testing.assert_allclose(epochs["gradient_variance"][:, 0], fresh["gradient_variance"][:, 0], rtol=1e-12)


@pytest.mark.parametrize("sampling", [RESHUFFLED, CYCLIC], ids=repr)
def test_runs_estimate_the_exact_values(sampling):
    rng = np.random.default_rng(5)
    x, y, w0 = rng.normal(size=(6, 2)), rng.normal(size=(6, 2)), rng.normal(size=(2, 2))
    options = {"sampling": sampling, "l2": 0.1, "momentum": 0.3, "combination": rng.normal(size=(6, 1, 2))}
    exact = sn.predict.regression(x, y, w0, 0.1, [2, 3], 7, **options)
    estimate = sn.predict.regression(x, y, w0, 0.1, [2, 3], 7, runs=4000, seed=3, loss_variance=True, **options)
    assert "4000 random orders" in estimate.attrs["theory"] and "loss_variance_stderr" in estimate
    compared = [name for name in exact if f"{name}_stderr" in estimate]
    assert len(compared) == 6
    exact, estimate = exact.sel(step=slice(1, None)), estimate.sel(step=slice(1, None))  # the start is known
    verdict = sn.compare(exact, estimate, variables=compared, alarm=1e-6)
    assert verdict.agrees, verdict.sentence
    assert not sn.compare(1.1 * exact, estimate, variables=["gradient_variance"], alarm=1e-6).agrees
    wrong = sn.predict.regression(x, y, w0, 0.1, [2, 3], 7, **options | {"sampling": sn.sampling.WithoutReplacement()})
    assert not sn.compare(wrong.sel(step=slice(1, None)), estimate, variables=["gradient_variance"], alarm=1e-6).agrees


def test_what_is_out_of_reach_says_so():
    x, y, w0 = np.ones((60, 2)), np.ones(60), np.zeros(2)
    with pytest.raises(sn.InputError, match=r"sets of used samples: exact moments would take .* Give runs=10_000"):
        sn.predict.regression(x, y, w0, 0.1, [20], 5, sampling=RESHUFFLED)
    with pytest.raises(sn.InputError, match=r"orders: exact moments would take"):
        sn.predict.regression(x, y, w0, 0.1, [20], 5, sampling=CYCLIC)
    with pytest.raises(sn.InputError, match="runs=10: at least 100"):
        sn.predict.regression(x, y, w0, 0.1, [20], 5, sampling=CYCLIC, runs=10)
    with pytest.raises(sn.InputError, match="loss_variance=True has no exact answer here"):
        sn.predict.regression(x[:4], y[:4], w0, 0.1, [2], 5, sampling=CYCLIC, loss_variance=True)
