"""Figures, table and sentences of a polynomial in 1/b show stored numbers, and say where runs cannot follow."""

import numpy as np
import pytest

from shotnoise import show
from shotnoise.errors import InputError
from shotnoise.predict import batch_exponent
from shotnoise.predict.networks import Points, gradient_variance_polynomial, loss_polynomial, tabulate

SIZES = [1, 2, 8, 64, 512, 1024]


@pytest.fixture(scope="module")
def predicted():
    return tabulate(gradient_variance_polynomial([[[1]], [[2]]], [[4]], "1/6", step=1), SIZES)


@pytest.fixture(scope="module")
def simulated(predicted):
    some = predicted[["gradient_variance"]]
    return some.assign(gradient_variance_stderr=0.1 * some["gradient_variance"])


def lines(figure):
    return {line.get_gid(): line for axes in figure.axes for line in axes.lines if line.get_gid()}


def test_the_figure_draws_the_stored_numbers(predicted, simulated):
    drawn = lines(show.polynomial(predicted, simulated))
    np.testing.assert_array_equal(drawn["predicted gradient_variance"].get_ydata(), predicted["gradient_variance"])
    np.testing.assert_array_equal(drawn["predicted one_over_b_law"].get_ydata(), predicted["one_over_b_law"])
    coefficients = predicted["batch_coefficient"].values
    for sign in (1, -1):
        np.testing.assert_array_equal(drawn[f"sign {sign}"].get_ydata(), abs(coefficients[sign * coefficients > 0]))


def test_marks_where_no_simulation_follows_are_hollow(predicted, simulated):
    agrees = predicted.attrs["simulation_agrees_from"]
    assert 2 < agrees < 1024
    upper = show.polynomial(predicted, simulated).axes[0]
    filled, hollow = (bars.lines[0] for bars in upper.containers)
    assert min(filled.get_xdata()) >= agrees > max(hollow.get_xdata())
    assert hollow.get_markerfacecolor() == "white" != filled.get_markerfacecolor()
    band = upper.patches[0].get_extents().transformed(upper.transData.inverted())
    assert band.x1 == pytest.approx(agrees)


def test_a_law_that_holds_everywhere_has_no_band():
    flat = tabulate(gradient_variance_polynomial([[[1]], [[1]]], [[4]], "1/24", step=0), [1, 2])
    assert not show.polynomial(flat).axes[0].patches
    assert "within a tenth of beta_1 / b at every batch size" in " ".join(show.polynomial_sentences(flat))


def test_sentences_say_where_it_rises():
    points = Points([["0"], ["2"]])
    rising = tabulate(gradient_variance_polynomial([[[1]], [[2]]], [[1]], "1/2", step=1, layer=0, inputs=points), SIZES)
    said = show.polynomial_sentences(rising)
    assert said[0] == "The gradient variance falls with the batch size from b = 1.58 on, and rises somewhere below."
    assert "Too low" in said[-1]


def test_nothing_to_learn_is_drawn_with_a_note():
    still = tabulate(gradient_variance_polynomial([[[1]], [[1]]], [[1]], "1/24", step=1), [1, 2])
    assert show.polynomial(still).axes[1].get_title(loc="left") == "all coefficients are exactly 0"


def test_the_table_is_exact_where_it_fits(predicted):
    sheet = show.polynomial_sheet(predicted)
    assert sheet.columns == ["power of 1/b", "coefficient", "exactly"] and sheet.rows[0][0] == "1"
    floats = tabulate(gradient_variance_polynomial([[[1.0]], [[2.0]]], [[4.0]], 0.1, step=1), SIZES)
    assert show.polynomial_sheet(floats).columns == ["power of 1/b", "coefficient"]
    loss = tabulate(loss_polynomial([[[1]], [[1]]], [[4]], "1/24", step=1), SIZES, "loss")
    assert show.polynomial_sheet(loss).rows[0][:2] == ["0", "3.73840"]
    assert "one_over_b_law" not in " ".join(lines(show.polynomial(loss)))


def test_exponents(predicted, simulated):
    exact, measured = batch_exponent(predicted), batch_exponent(simulated)
    figure = show.exponents(exact, measured)
    np.testing.assert_array_equal(lines(figure)["exponent None"].get_ydata(), exact["local_exponent"])
    with pytest.raises(InputError, match="batch_exponent"):
        show.exponents(predicted)
    with pytest.raises(InputError, match="tabulate"):
        show.polynomial(exact)


def test_the_page(predicted, tmp_path):
    page = show.polynomial_report(predicted, tmp_path / "p.html").read_text()
    assert "power of 1/b" in page and "<img" in page
