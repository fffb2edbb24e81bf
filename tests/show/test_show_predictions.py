"""Figures, sentences and table of a prediction show stored numbers, and say what they leave out."""

import numpy as np
import pytest
import xarray as xr

import shotnoise as sn
from shotnoise import show

SIZES = [1, 2, 4, 12]


@pytest.fixture(scope="module")
def predicted():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=12)
    return sn.predict.regression(x, y, np.ones(3), 0.15, SIZES, 40)


@pytest.fixture(scope="module")
def simulated(predicted):
    some = predicted[["gradient_variance", "full_gradient_variance"]].isel(step=slice(0, None, 4))
    return some.assign({f"{name}_stderr": 0.1 * some[name] for name in some})


def lines(figure, start):
    return {
        line.get_gid(): line for axes in figure.axes for line in axes.lines if (line.get_gid() or "").startswith(start)
    }


def test_lines_are_the_stored_numbers(predicted, simulated):
    figure = show.prediction(predicted, simulated)
    drawn = lines(figure, "predicted gradient_variance 2")["predicted gradient_variance 2"]
    np.testing.assert_array_equal(drawn.get_ydata(), predicted["gradient_variance"].sel(batch_size=2))
    assert "exactly 0 at $b$ = 12" in figure.axes[0].get_title(loc="left")
    assert len(lines(figure, "simulated")) == 2  # a gid per variable, the last curve's
    full = lines(figure, "predicted full_gradient_variance 2")["predicted full_gradient_variance 2"]
    assert full.get_xdata()[0] == 1  # at step 0 it is zero and has no place


def test_what_is_estimated_has_its_band(predicted):
    estimated = predicted.assign(full_gradient_variance_stderr=0.1 * predicted["full_gradient_variance"])
    figure = show.prediction(estimated)
    assert not figure.axes[0].collections
    bands = {band.get_gid(): band for band in figure.axes[1].collections}
    ends = bands["error of full_gradient_variance 2"].get_paths()[0].vertices
    value = float(predicted["full_gradient_variance"].sel(batch_size=2, step=40))
    at_end = ends[ends[:, 0] == 40][:, 1]
    np.testing.assert_allclose([at_end.min(), at_end.max()], [(1 - 0.196) * value, (1 + 0.196) * value], rtol=1e-3)
    assert "1.96 standard errors" in [t.get_text() for t in figure.legends[0].get_texts()]
    assert "1.96 standard errors" not in [t.get_text() for t in show.prediction(predicted).legends[0].get_texts()]


def test_against_the_batch_size(predicted, simulated):
    steps = [4, 40]
    fitted = predicted[["gradient_variance"]].sel(step=steps) * -1
    figure = show.against_batch_size(predicted.sel(step=steps), simulated.sel(step=steps), fitted)
    drawn = lines(figure, "predicted 40")["predicted 40"]
    np.testing.assert_array_equal(drawn.get_ydata(), predicted["gradient_variance"].sel(step=40)[:-1])
    assert "not drawn: 8 values of the fits that are negative" in figure.axes[0].get_title(loc="left")


def test_what_is_not_there(predicted):
    with pytest.raises(sn.InputError, match="nothing to draw for accuracy"):
        show.prediction(predicted, variables=["accuracy"])
    with pytest.raises(sn.InputError, match="the prediction has no gradient_variance"):
        show.against_batch_size(xr.Dataset())


def test_sentences(predicted):
    advice = sn.predict.batch_size_report(predicted)
    said = " ".join(show.prediction_sentences(predicted, advice))
    first = float(predicted["gradient_variance"].sel(batch_size=1, step=40))
    assert f"variance {first:.3g} at batch size 1" in said.replace("0 at batch", "at batch") or f"{first:.2f}" in said
    assert "A larger batch makes none of these larger" in said and "doubling the batch" in said
    rising = advice.copy(deep=True)
    rising["is_decreasing"].loc[{"quantity": "loss"}] = False
    rising["largest_increase"].loc[{"quantity": "loss"}] = 0.25
    assert "can make it larger: the expected loss (by up to 25 %" in " ".join(
        show.prediction_sentences(predicted, rising)
    )


def test_the_law_in_words(predicted):
    advice = sn.predict.batch_size_report(predicted, tolerance=1e-9)
    assert "From step 1 on no batch size given is within" in show.prediction_sentences(predicted, advice)[-1]
    advice = sn.predict.batch_size_report(predicted, tolerance=1e3)
    assert "At every step and batch size the variance is within" in show.prediction_sentences(predicted, advice)[-1]


def test_the_table(predicted):
    limits = xr.Dataset({"critical_learning_rate": ("batch_size", np.ones(4))}, {"batch_size": SIZES})
    sheet = show.prediction_sheet(predicted, sn.predict.batch_size_report(predicted), limits)
    assert sheet.columns[-3:] == ["M", "M_V", "critical rate"] and [row[0] for row in sheet.rows] == [
        "1",
        "2",
        "4",
        "12",
    ]


def test_the_page_escapes(predicted, tmp_path):
    named = predicted.assign_attrs(data="<b>mine</b>")
    path = show.prediction_report(named, tmp_path / "page.html", title="A <i>title</i>")
    html = path.read_text()
    assert "<b>mine" not in html and "<i>title" not in html and "&lt;b&gt;mine" in html
