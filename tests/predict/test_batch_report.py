"""What a larger batch buys: monotonicity, doubling, the large-batch law and the constants M and M_V."""

import numpy as np
import pytest
import xarray as xr

import shotnoise as sn

ALL = list(range(1, 13))


@pytest.fixture(scope="module")
def prediction():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=12)
    return sn.predict.regression(x, y, np.ones(3), 0.2, ALL, 30)


def test_everything_falls_with_the_batch(prediction):
    report = sn.predict.batch_size_report(prediction)
    assert report["is_decreasing"].all() and (report["largest_increase"] == 0).all()


def test_a_rise_is_found_with_its_size(prediction):
    broken = prediction.copy(deep=True)
    broken["loss"][4, 7] = 1.25 * broken["loss"][:, 7].max()
    report = sn.predict.batch_size_report(broken)
    assert not report["is_decreasing"].sel(quantity="loss")
    assert float(report["largest_increase"].sel(quantity="loss")) == pytest.approx(
        float((broken["loss"][4, 7] - broken["loss"][3, 7]) / broken["loss"][4, 7])
    )
    assert report["is_decreasing"].sel(quantity="gradient_variance")


def test_doubling(prediction):
    report = sn.predict.batch_size_report(prediction)
    ratio = report["doubling_ratio"].sel(quantity="gradient_variance")
    np.testing.assert_allclose(
        ratio.sel(batch_size=3),
        prediction["gradient_variance"].sel(batch_size=6) / prediction["gradient_variance"].sel(batch_size=3),
    )
    assert np.isnan(ratio.sel(batch_size=7)).all() and (ratio.sel(batch_size=1) < 0.5).all()


def test_the_law_holds_at_the_start_and_for_large_batches(prediction):
    report = sn.predict.batch_size_report(prediction)
    np.testing.assert_allclose(report["law_ratio"].sel(step=0)[:-1], 1, rtol=1e-12)  # kappa Tr Sigma exactly
    excess = report["law_ratio"].sel(step=20) - 1
    assert (np.diff(excess[:-1]) < 0).all() and excess[0] > 0.1  # the smaller the batch, the further above the law
    assert report["law_holds_from"].sel(step=0) == 1 and report["law_holds_from"].sel(step=20) > 1
    holds = float(report["law_holds_from"].sel(step=20))
    assert (abs(report["law_ratio"].sel(step=20, batch_size=slice(holds, 11)) - 1) <= 0.1).all()
    assert abs(float(report["law_ratio"].sel(step=20, batch_size=holds - 1)) - 1) > 0.1


def test_the_best_line_above_the_variance(prediction):
    report = sn.predict.batch_size_report(prediction)
    noise = prediction["gradient_variance"] - prediction["full_gradient_variance"]
    signal = prediction["gradient_norm_sq"]
    slack = report["noise_floor"] + report["noise_slope"] * signal - noise
    assert (slack > -1e-9 * noise.max()).all()
    touching = (slack < 1e-9 * noise.max("step")).sum("step")
    assert (touching.sel(batch_size=slice(1, 11)) >= 1).all()
    # by brute force over the lines through two points or along an axis
    for b in (1, 4):
        v, x = noise.sel(batch_size=b).values, signal.sel(batch_size=b).values
        lines = [(v.max(), 0.0), (0.0, (v / x).max())]
        for i in range(len(v)):
            for j in range(i):
                slope = (v[i] - v[j]) / (x[i] - x[j])
                lines.append((v[i] - slope * x[i], slope))
        feasible = [(f, s) for f, s in lines if f >= 0 and s >= 0 and (f + s * x >= v - 1e-12).all()]
        best = min(f + s * x.mean() for f, s in feasible)
        own = report.sel(batch_size=b)
        assert float(own["noise_floor"] + own["noise_slope"] * x.mean()) == pytest.approx(best, rel=1e-9)


def test_refusals(prediction):
    with pytest.raises(sn.InputError, match="at least two batch sizes"):
        sn.predict.batch_size_report(prediction.isel(batch_size=[0]))
    with pytest.raises(sn.InputError, match="at least two batch sizes"):
        sn.predict.batch_size_report(xr.Dataset())
    with pytest.raises(sn.InputError, match="tolerance=0"):
        sn.predict.batch_size_report(prediction, tolerance=0)
