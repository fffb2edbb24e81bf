import io

import numpy as np
import pytest
import xarray as xr
from rich.console import Console
from scipy import stats

from shotnoise.compare import compare
from shotnoise.errors import InputError

ALARM_OF_TESTS = 1e-4


def result(values, stderr=None, name="noise_trace", **attributes):
    values = np.asarray(values, dtype=float)
    coordinates = {"batch_size": 2 ** np.arange(len(values))}
    variables = {name: ("batch_size", values)}
    if stderr is not None:
        variables[f"{name}_stderr"] = ("batch_size", np.broadcast_to(np.asarray(stderr, float), values.shape))
    return xr.Dataset(variables, coordinates, attributes)


def test_z_is_the_difference_in_combined_standard_errors():
    found = compare(result([1.0, 2.0], 0.3), result([2.0, 2.0], 0.4))
    assert [row.z for row in found.rows] == pytest.approx([-2.0, 0.0])
    assert [row.where for row in found.rows] == [{"batch_size": 1}, {"batch_size": 2}]
    assert found.max_abs_z == pytest.approx(2.0)
    assert found.p_value == pytest.approx(2 * 2 * stats.norm.sf(2.0))
    assert found.threshold == pytest.approx(stats.norm.isf(1e-3 / 4))


def test_verdict_threshold_and_p_value_say_the_same():
    for shift in np.linspace(0, 6, 61):
        found = compare(result([shift, 0.0, 0.0], 1.0), result([0.0, 0.0, 0.0]), alarm=0.01)
        assert found.agrees == (found.max_abs_z <= found.threshold) == (found.p_value >= 0.01)


def test_draws_bring_students_t():
    few, many = (compare(result([4.0], 1.0, draws=draws), result([0.0])) for draws in (5, 10_000))
    assert few.p_value == pytest.approx(2 * stats.t.sf(4.0, 4)) and few.agrees
    assert many.p_value == pytest.approx(2 * stats.norm.sf(4.0), rel=0.05) and not many.agrees


def false_alarms(points, draws, alarm, repeats, scale=1.0, seed=0):
    """How often estimates from `draws` Gaussian numbers each are called different from their true mean."""
    rng = np.random.default_rng(seed)
    alarms = 0
    for _ in range(repeats):
        x = rng.normal(size=(draws, points))
        a = result(x.mean(0), scale * x.std(0, ddof=1) / np.sqrt(draws), draws=draws)
        alarms += not compare(a, result(np.zeros(points)), alarm=alarm).agrees
    return alarms


def nominal(alarms, alarm, repeats):
    low, high = stats.binom.interval(1 - ALARM_OF_TESTS, repeats, alarm)
    return low <= alarms <= high


@pytest.mark.parametrize(("points", "draws"), [(1, 5), (1, 400), (6, 10)])
def test_false_alarms_come_at_the_rate_asked_for(points, draws):
    repeats, alarm = 250, 0.1
    family = 1 - (1 - alarm / points) ** points  # independent points: Bonferroni is this close to exact
    assert nominal(false_alarms(points, draws, alarm, repeats), family, repeats)
    assert not nominal(false_alarms(points, draws, alarm, repeats, scale=0.5), family, repeats), "halved errors pass"


@pytest.mark.slow
@pytest.mark.parametrize(("points", "draws"), [(1, 400), (8, 20)])
def test_false_alarms_at_a_small_rate(points, draws):
    repeats, alarm = 5000, 0.01
    assert nominal(false_alarms(points, draws, alarm, repeats), 1 - (1 - alarm / points) ** points, repeats)


def test_p_values_are_uniform_for_one_point():
    rng = np.random.default_rng(1)
    found = [compare(result([z], 1.0), result([0.0])).p_value for z in rng.normal(size=500)]
    assert stats.kstest(found, "uniform").pvalue > ALARM_OF_TESTS
    overconfident = [compare(result([z], 0.7), result([0.0])).p_value for z in rng.normal(size=500)]
    assert stats.kstest(overconfident, "uniform").pvalue < ALARM_OF_TESTS


def test_power():
    rng = np.random.default_rng(2)
    shift = stats.norm.isf(1e-3 / 2) + stats.norm.isf(0.1)  # found nine times in ten
    caught = sum(not compare(result([shift + z], 1.0), result([0.0])).agrees for z in rng.normal(size=400))
    low, high = stats.binom.interval(1 - ALARM_OF_TESTS, 400, 0.9)
    assert low <= caught <= high


def test_a_nan_point_is_left_out_and_all_nan_is_refused():
    a, b = result([np.nan, 1.0, np.inf], 1.0), result([0.0, 1.0, np.inf], 1.0)
    assert [row.where["batch_size"] for row in compare(a, b).rows] == [2]
    with pytest.raises(InputError, match="no point of .'noise_trace'. can be compared"):
        compare(result([np.nan], 1.0), result([1.0]))


def test_points_known_exactly():
    assert len(compare(result([1.0, 0.0], [0.1, 0.0]), result([1.0, 0.0])).rows) == 1
    found = compare(result([1.0, 0.5], [0.1, 0.0]), result([1.0, 0.0]))
    assert not found.agrees and np.isinf(found.max_abs_z) and found.p_value == 0


def test_which_variables_are_compared():
    a = result([1.0], 1.0).merge(result([9.0], name="loss")).assign(noise_scale_status="estimated")
    b = result([1.0]).merge(result([5.0], name="loss")).assign(noise_scale_status="exact")
    assert {row.variable for row in compare(a, b).rows} == {"noise_trace"}
    with pytest.raises(InputError, match=r"'loss' has a standard error in neither result.*assert_allclose"):
        compare(a, b, variables=["loss"])
    with pytest.raises(InputError, match="'noise_scale_status' of the first result is not a number"):
        compare(a, b, variables=["noise_scale_status"])
    with pytest.raises(InputError, match=r"the second result has no variable 'loss'; it has .'noise_trace', "):
        compare(a, result([1.0], 1.0), variables=["loss"])
    with pytest.raises(InputError, match="nothing to compare: .* with a _stderr in at least one"):
        compare(result([1.0]), result([1.0]))
    with pytest.raises(InputError, match="nothing to compare"):
        compare(a, result([1.0], 1.0, name="gradient_norm_sq"))


def test_dimensions_and_coordinates_must_match():
    a = result([1.0, 2.0], 1.0)
    with pytest.raises(InputError, match="the coordinates of 'noise_trace' differ between the results"):
        compare(a, a.assign_coords(batch_size=[1, 3]))
    with pytest.raises(InputError, match="the coordinates of 'noise_trace' differ"):
        compare(a, a.isel(batch_size=[0]))
    with pytest.raises(InputError, match=r"dimensions \('batch_size',\) in the first result and \(\) in the second"):
        compare(a, a.isel(batch_size=0, drop=True))
    with pytest.raises(InputError, match="differ"):
        compare(a.drop_vars("batch_size"), a.isel(batch_size=[0]).drop_vars("batch_size"))


def test_order_of_dimensions_does_not_matter():
    values = np.arange(6.0).reshape(2, 3)
    a = xr.Dataset({"loss": (("x", "y"), values), "loss_stderr": (("x", "y"), values + 1)})
    assert compare(a, a.transpose("y", "x")).max_abs_z == 0
    assert compare(a, a.assign(loss=a.loss + 1).transpose("y", "x")).rows[-1].z == pytest.approx(-1 / np.hypot(6, 6))


@pytest.mark.parametrize("alarm", [0, 1, -0.1, 2, float("nan")])
def test_alarm_is_a_probability(alarm):
    with pytest.raises(InputError, match="alarm=.*between 0 and 1"):
        compare(result([1.0], 1.0), result([1.0]), alarm=alarm)


def test_sentence_and_table():
    found = compare(result([1.0, 12.5], [0.5, 0.5]), result([1.5, 2.5]))
    assert found.sentence == (
        "The results disagree: the largest of 2 deviations is 20.00 standard errors, "
        "the limit 3.48 at a false-alarm rate of 0.001; p = 1.1e-88."
    )
    assert compare(result([1.0], 1.0), result([1.0])).sentence.startswith("The results agree: ")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(found.table())
    text = console.export_text()
    assert found.sentence in " ".join(text.split())
    for part in ("noise_trace", "batch_size", "1 ± 0.5", "12.5 ± 0.5", "2.5", "-1.00", "+20.00"):
        assert part in text


def test_points_that_cannot_be_judged_are_counted():
    a, b = result([1.0, np.nan, np.inf], 1.0), result([1.0, 2.0, 3.0], 1.0)
    found = compare(a, b)
    assert len(found.rows) == 1 and found.left_out == 2
    assert "2 points could not be judged" in found.sentence
    assert "judged" not in compare(result([1.0], 1.0), result([1.0])).sentence
