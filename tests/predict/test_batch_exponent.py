"""The exponent of a variance's fall with the batch size, against NumPy's weighted fit and by coverage."""

import numpy as np
import pytest
import xarray as xr

from shotnoise.errors import InputError
from shotnoise.predict import batch_exponent
from shotnoise.predict.networks import gradient_variance_polynomial, tabulate

SIZES = np.array([1, 2, 4, 16, 64])


def simulated(values, relative):
    return xr.Dataset(
        {"gradient_variance": ("batch_size", values), "gradient_variance_stderr": ("batch_size", relative * values)},
        {"batch_size": SIZES},
    )


def test_the_fit_is_numpys_with_its_standard_error():
    rng = np.random.default_rng(0)
    values, relative = rng.uniform(0.1, 2, 5), rng.uniform(0.01, 0.2, 5)
    found = batch_exponent(simulated(values, relative))
    line, covariance = np.polyfit(np.log(SIZES), np.log(values), 1, w=1 / relative, cov="unscaled")
    assert float(found["batch_exponent"]) == pytest.approx(-line[0])
    assert float(found["batch_exponent_stderr"]) == pytest.approx(np.sqrt(covariance[0, 0]))
    unweighted = -np.polyfit(np.log(SIZES), np.log(values), 1)[0]
    assert float(found["batch_exponent"]) != pytest.approx(unweighted)


def test_local_exponents_tend_to_one_where_the_law_holds():
    p = gradient_variance_polynomial([[[1]], [[1]]], [[4]], "1/24", step=1)
    found = batch_exponent(tabulate(p, [1, 2, 100, 200, 10_000, 20_000]))
    slopes = {b: float(found["local_exponent"].sel(batch_size=b)) for b in (1, 100, 10_000)}
    exact = {b: float(np.log2(float(p(b) / p(2 * b)))) for b in (1, 100, 10_000)}
    assert slopes == pytest.approx(exact)
    assert abs(slopes[10_000] - 1) < abs(slopes[100] - 1) / 50  # the next term is one order of 1/b smaller
    assert found["between"].values[0] == pytest.approx(np.sqrt(2))


def test_the_standard_errors_cover():
    """2,000 repeats (as steps) at a true exponent of 1.3: 95 % intervals within 4 standard errors of their share."""
    rng, repeats = np.random.default_rng(1), 2000
    relative = np.array([0.03, 0.05, 0.02, 0.06, 0.04])[:, None]
    values = 3 * SIZES[:, None] ** -1.3 * np.exp(relative * rng.normal(size=(5, repeats)))
    axes = ("batch_size", "step")
    runs = xr.Dataset({"loss": (axes, values), "loss_stderr": (axes, relative * values)}, {"batch_size": SIZES})
    found = batch_exponent(runs.assign_coords(step=np.arange(repeats)), "loss").isel(batch_size=1)
    spread = 4 * np.sqrt(0.95 * 0.05 / repeats)
    for name in ("batch_exponent", "local_exponent"):
        inside = abs(found[name] - 1.3) < 1.96 * found[f"{name}_stderr"]
        assert abs(float(inside.mean()) - 0.95) < spread


def test_steps_are_fitted_one_by_one_and_what_is_not_positive_is_left_out():
    values = np.array([[8.0, 1.0], [4.0, 0.0], [2.0, 0.25]])
    result = xr.Dataset({"loss": (("batch_size", "step"), values)}, {"batch_size": [1, 2, 4], "step": [3, 7]})
    found = batch_exponent(result, "loss")
    np.testing.assert_allclose(found["batch_exponent"], [1.0, 1.0])
    assert np.isnan(found["local_exponent"].sel(step=7)).all()
    assert np.isnan(batch_exponent(result.assign(loss=0 * result["loss"]), "loss")["batch_exponent"]).all()


def test_unsorted_sizes_are_sorted():
    result = xr.Dataset({"loss": ("batch_size", [1.0, 4.0])}, {"batch_size": [4, 1]})
    assert float(batch_exponent(result, "loss")["batch_exponent"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (xr.Dataset({"loss": ("batch_size", [1.0])}, {"batch_size": [1]}), "two batch sizes or more"),
        (xr.Dataset({"loss": ("step", [1.0, 2.0]), "x": ("batch_size", [1, 2])}), "two batch sizes or more"),
        (xr.Dataset({"loss": (("batch_size", "run"), np.ones((2, 2)))}, {"batch_size": [1, 2]}), "select one entry"),
    ],
)
def test_bad_input(result, message):
    with pytest.raises(InputError, match=message):
        batch_exponent(result, "loss")
