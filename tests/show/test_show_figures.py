"""What is drawn is what is stored."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from shotnoise import show
from shotnoise.errors import InputError
from shotnoise.show.layers import shortened
from shotnoise.show.style import render

VARIANCE = "conditional_gradient_variance"


def drawn(axes, gid):
    """The data of the line of this name."""
    (line,) = [line for line in axes.get_lines() if line.get_gid() == gid]
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


def gids(axes):
    return [line.get_gid() for line in axes.get_lines() if line.get_gid()]


def words(figure):
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for legend in legends if legend for text in legend.get_texts()]


def remark(figure):
    return figure.axes[0].get_title(loc="left")


def test_variance_is_drawn_as_stored(result):
    figure = show.conditional_variance(result)
    (axes,) = figure.axes
    x, y = drawn(axes, "measured")
    assert_array_equal(x, result["batch_size"])
    assert_array_equal(y, result[VARIANCE])
    assert_array_equal(drawn(axes, "signal")[1], [result["gradient_norm_sq"]] * 2)
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_xlabel() == "batch size $b$ (samples)"
    assert r"\mathrm{var}(g^b\,|\,w_t)" in axes.get_ylabel()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "8", "64", "512"]
    assert remark(figure) == ""


def test_observations_lie_over_the_measurement(result, build):
    observed = build.observed(result)
    upper, lower = show.conditional_variance(result, observed).axes
    assert_array_equal(drawn(upper, "observed")[1], observed[VARIANCE])
    (bars,) = upper.containers
    lengths = [segment[1, 1] - segment[0, 1] for segment in bars.lines[2][0].get_segments()]
    assert_allclose(lengths, 2 * 1.959964 * observed[f"{VARIANCE}_stderr"], rtol=1e-6)
    assert_allclose(drawn(lower, "ratio")[1], observed[VARIANCE] / result[VARIANCE])
    assert "observed,\n95 % intervals" in words(upper.figure)


def test_steps_have_a_colour_each(series, build):
    figure = show.conditional_variance(series, build.observed(series))
    upper = figure.axes[0]
    steps = [int(step) for step in series["step"]]
    for what in ("measured", "observed", "signal"):
        assert [gid for gid in gids(upper) if gid.startswith(what)] == [f"{what} step {t}" for t in steps]
    colours = {line.get_color() for line in upper.get_lines() if str(line.get_gid()).startswith("measured")}
    assert len(colours) == len(steps)
    assert words(figure)[:4] == ["step 0", "step 10", "step 100", "step 1,000"]


def test_observations_at_one_step_and_at_other_sizes(series, build):
    observed = build.observed(series.isel(step=2, batch_size=[0, 2]))
    upper, lower = show.conditional_variance(series, observed).axes
    assert [gid for gid in gids(upper) if "observed" in gid] == ["observed step 100"]
    assert len(drawn(lower, "ratio")[1]) == 2


def test_zero_variance_is_left_out_and_said(build):
    result = build.result([1, 64, build.samples])
    figure = show.conditional_variance(result)
    assert_array_equal(drawn(figure.axes[0], "measured")[0], [1, 64])
    assert remark(figure) == "not drawn: the variance is exactly 0 at $b$ = 1,797"
    assert_array_equal(drawn(show.noise_share(result).axes[0], "share")[1][-1], 0)


def test_zero_gradient_has_no_line(build):
    axes = show.conditional_variance(build.result(signal=[0, 0, 0])).axes[0]
    assert gids(axes) == ["measured"]


def test_estimates_have_bands(build):
    result = build.result(stderr=True)
    (band,) = show.conditional_variance(result).axes[0].collections
    reach = 1.959964 * result[f"{VARIANCE}_stderr"]
    heights = band.get_paths()[0].vertices[:, 1]
    assert_allclose(heights.max(), (result[VARIANCE] + reach).max(), rtol=1e-6)
    assert_allclose(heights.min(), (result[VARIANCE] - reach).min(), rtol=1e-6)
    assert len(show.noise_share(result).axes[0].collections) == 1


def test_noise_share(series):
    figure = show.noise_share(series)
    (axes,) = figure.axes
    for t in (0, 1000):
        assert_array_equal(drawn(axes, f"share step {t}")[1], series["noise_share"].sel(step=t))
    assert axes.get_xscale() == "log" and axes.get_yscale() == "linear"
    assert axes.yaxis.get_major_formatter()(0.5) == "50 %"
    assert "\\|g^b\\|^2" in axes.get_ylabel()


def test_shares_beyond_the_whole_are_said_to_be_missing(build):
    result = build.result(stderr=True)
    result["noise_share"][-1] = 1.4
    assert remark(show.noise_share(result)).startswith("not drawn: shares beyond 0 to 100 %")


def test_noise_scale_along_training(series):
    (axes,) = show.noise_scale(series).axes
    x, y = drawn(axes, "noise scale")
    assert_array_equal(x, series["step"])
    assert_array_equal(y, series["noise_scale"])
    assert axes.get_yscale() == "log" and axes.get_xscale() == "symlog"
    assert axes.get_xlabel() == "step $t$ (updates done)"
    assert "(samples)" in axes.get_ylabel()
    assert axes.get_ylim()[0] < y.min() and y.max() < axes.get_ylim()[1]


def test_even_steps_have_a_linear_axis(build):
    assert show.noise_scale(build.series(steps=range(0, 500, 100))).axes[0].get_xscale() == "linear"


def test_intervals_closed_open_and_unresolved(half_resolved):
    figure = show.noise_scale(half_resolved)
    (axes,) = figure.axes
    assert_array_equal(drawn(axes, "noise scale")[0], [0, 10, 100])
    assert_array_equal(drawn(axes, "no upper end")[0], [1000])
    bars = np.concatenate([np.array(c.get_segments()) for c in axes.collections])
    assert_allclose(bars[:, 0, 1], half_resolved["noise_scale_low"])
    assert_allclose(bars[:3, 1, 1], half_resolved["noise_scale_high"][:3])
    assert remark(figure) == "bars: 95 % intervals; arrow: no upper end; no dot: infinite or not resolvable"


@pytest.mark.parametrize("open_ended", [False, True])
def test_one_noise_scale_is_a_point_with_a_bar(build, open_ended):
    result = build.result(stderr=True, open_ended=open_ended)
    figure = show.noise_scale(result)
    (axes,) = figure.axes
    assert_array_equal(drawn(axes, "noise scale")[0], [result["noise_scale"]])
    x, _ = drawn(axes, "interval")
    assert x[0] == result["noise_scale_low"]
    assert ("no upper end" in gids(axes)) is open_ended
    assert open_ended or x[1] == result["noise_scale_high"]


@pytest.mark.parametrize("high", [300.0, np.inf])
def test_an_interval_that_starts_at_zero(build, high):
    result = build.result(signal=[0.1, 0.1, 0.1], noise=[30, 20, 10], stderr=True, open_ended=high == np.inf)
    result["noise_scale_low"], result["noise_scale_high"] = ((), 0.0), ((), high)
    for figure in (show.noise_scale(result), show.noise_scale(result.expand_dims(step=[0, 1]))):
        assert render(figure, "svg")
        assert len(drawn(figure.axes[0], "noise scale")[0]) >= 1


def test_noise_scale_of_nothing_still_draws(build):
    figure = show.noise_scale(build.result(signal=[0, 0, 0]))
    assert remark(figure) == "no dot: infinite or not resolvable"
    assert render(figure, "png")


def test_layers_are_bars_in_network_order(result):
    left, right = show.layers(result).axes
    ends = [bar.get_x() + bar.get_width() for bar in left.patches]
    assert_allclose(ends, result["layer_noise_scale"])
    assert {bar.get_x() for bar in left.patches} == {1.0}
    assert [label.get_text() for label in left.get_yticklabels()] == ["0", "2", "4"]
    assert left.get_ylim()[0] > left.get_ylim()[1], "the first layer is on top"
    for size in (1, 8, 64, 512):
        x, y = drawn(right, f"layer signal to noise {size}")
        assert_array_equal(x, result["layer_signal_to_noise"].sel(batch_size=size))
        assert_array_equal(y, [0, 1, 2])
    assert left.get_xscale() == right.get_xscale() == "log"
    assert left.get_xlabel() == "noise scale (samples)"


def test_layers_along_training_are_dots(series):
    left, right = show.layers(series).axes
    for t in (0, 10, 100, 1000):
        dots = drawn(left, f"layer noise scale step {t}")[0]
        assert_array_equal(dots, series["layer_noise_scale"].sel(step=t))
    assert right.get_xlabel().endswith("at step 1,000")
    assert not left.patches


def test_layers_that_have_no_mark_are_written_out(build):
    left, right = show.layers(build.result([1, build.samples], signal=[0, 1, 0], noise=[1, 0, 0])).axes
    assert [text.get_text() for text in left.texts] == ["inf", "0", "?"]
    assert right.get_legend() is None or len(right.get_legend().get_texts()) <= 1


def test_fifty_layers_have_room(build):
    names = [f"transformer.encoder.layers.{k}.self_attn.out_proj" for k in range(50)]
    figure = show.layers(build.result(layers=names))
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 50
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))
    assert len({shortened(name) for name in names}) == 50


def test_odd_layer_names_are_drawn_as_they_are(build):
    figure = show.layers(build.result(layers=["$x", "a_b^{", "<script>"]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["$x", "a_b^{", "<script>"]
    assert b"<script>" not in render(figure, "svg")


def test_spectrum(build):
    result = build.result(modes=6)
    result["noise_eigenvalues"][-1] = 0
    figure = show.spectrum(result)
    (axes,) = figure.axes
    x, y = drawn(axes, "eigenvalues")
    assert_array_equal(x, [1, 2, 3, 4, 5])
    assert_array_equal(y, result["noise_eigenvalues"][:5])
    assert axes.get_yscale() == "log"
    assert remark(figure) == "not drawn: 1 eigenvalue of 0 (within rounding)"


def test_which_figures_make_sense(build):
    assert list(show.figures(build.result())) == ["conditional_variance", "noise_share", "layers"]
    assert "noise_scale" in show.figures(build.result(stderr=True))
    assert list(show.figures(build.series(modes=2))) == [
        "conditional_variance",
        "noise_share",
        "noise_scale",
        "layers",
        "spectrum",
    ]
    assert "layers" not in show.figures(build.result(signal=[0, 0, 0]))


CASES = {
    "one size": lambda build: build.result([64]),
    "many steps": lambda build: build.series(steps=range(0, 1000, 50), grow=1.3),
    "unresolvable": lambda build: build.result(stderr=True, unresolvable=True),
    "no noise": lambda build: build.result(noise=[0, 0, 0]),
    "tiny noise": lambda build: build.result(noise=[1e-5] * 3, signal=[1, 1, 1]),
    "huge noise": lambda build: build.result(noise=[1e15] * 3),
}


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_drawn_without_a_warning(case, build):
    for figure in show.figures(CASES[case](build)).values():
        assert render(figure, "svg")


def test_foreign_datasets_are_refused(result, series, build):
    observed = build.observed(result)
    with pytest.raises(InputError, match=r"expected a result of shotnoise\.measure, but loss, .* is not among"):
        show.figures(observed)
    with pytest.raises(InputError, match="has the dimension run"):
        show.figures(result.expand_dims(run=[0, 1]))
    with pytest.raises(InputError, match="`observed` has no variable conditional_gradient_variance_stderr"):
        show.figures(result, result)
    with pytest.raises(InputError, match="does not say at which one it was drawn"):
        show.figures(series, observed)
    with pytest.raises(InputError, match="Draw at the measured steps"):
        show.figures(series, observed.assign_coords(step=7))
    with pytest.raises(InputError, match="a dimension step that the result lacks"):
        show.figures(result, build.observed(series))
    with pytest.raises(InputError, match="no layer_noise_scale"):
        show.layers(result.drop_vars("layer_noise_scale"))
    with pytest.raises(InputError, match="no noise_eigenvalues"):
        show.spectrum(result)
