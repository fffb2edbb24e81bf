"""The sentences say what is stored, no more."""

import numpy as np
import pytest
import xarray as xr

from shotnoise.errors import InputError
from shotnoise.show import reading


def text(*args, **kwargs):
    return " ".join(reading(*args, **kwargs))


@pytest.fixture
def practical(build):
    """Noise scale 1,500 out of 1,797 samples; the shares below were worked out by hand."""
    return build.result(signal=[0.001, 0.003, 0.004], noise=[3, 6, 3])


def test_an_exact_result(practical):
    sentences = reading(practical)
    assert sentences[0] == (
        "At batch size 64 about 96 % of a gradient step is noise, as a share of the expected squared "
        "length of the step; it is more than 99.9 % at batch size 1 and about 68 % at batch size 512."
    )
    assert sentences[1] == (
        "Beyond about 1,500 samples a larger batch stops paying: noise then makes up no more than half of "
        "the expected squared length of a step, so that no batch, however large, can shorten it by more "
        "than half."
    )
    assert "Noise outweighs signal at every batch size measured." in sentences
    assert sentences[-1].endswith("exact for this data set and these weights: all 1,797 samples were used.")
    assert "interval" not in " ".join(sentences)


def test_stops_paying_is_true_of_the_sampling_factors(practical):
    n, signal, noise = 1797, float(practical["gradient_norm_sq"]), float(practical["noise_trace"])
    scale = noise / signal
    for b in (scale, 1600.0, 1797.0):
        for factor in (1 / b, (n - b) / (b * (n - 1))):
            assert factor * noise <= signal * (1 + 1e-12)


def test_the_border_between_noise_and_signal(build):
    said = text(build.result([1, 8, 64, 512], signal=[0.1, 0.1, 0.1], noise=[3, 6, 3]))
    assert "Of the batch sizes measured, noise outweighs signal up to 8 and not from 64 on." in said


def test_a_scale_beyond_the_data(build):
    said = text(build.result(signal=[1e-4] * 3, noise=[1, 1, 1]))
    assert "The noise scale is about 10,000 samples, more than the 1,797 in the data set" in said
    assert "stops paying" not in said


def test_a_scale_below_one(build):
    said = text(build.result(signal=[1, 1, 1], noise=[0.1, 0.1, 0.1]))
    assert "The noise scale is about 0.1 samples: even a single sample carries more signal than noise." in said


def test_the_whole_data_set_as_a_batch(build):
    said = text(build.result([1, 64, build.samples]))
    assert "At batch size 1,797 there is no noise at all: the batch is the whole data set." in said
    assert "0 % at batch size 1,797" not in said


def test_noise_that_hangs_on_few_samples(build):
    result = build.result(stderr=True)
    for share, warned in ((0.39, False), (0.41, True)):
        said = text(result.assign(noise_trace_stderr=share * result["noise_trace"]))
        assert ("A few samples carry the noise, which is known to 41 % only" in said) == warned
    steps = xr.concat([result.assign_coords(step=0), result.assign_coords(step=5)], "step")
    error = xr.DataArray([0.1, 0.9], dims="step") * steps["noise_trace"]
    assert "A few samples carry the noise at step 5, which is known to 90 % only" in text(
        steps.assign(noise_trace_stderr=error)
    )


def test_a_lower_end_of_nothing_is_not_told(build):
    result = build.result(unresolvable=True)
    for low, told in ((1e-13, False), (12.0, True)):
        assert ("larger than about" in text(result.assign(noise_scale_low=low))) == told


def test_an_estimate_has_its_interval(build):
    said = text(build.result(signal=[0.1, 0.1, 0.1], noise=[30, 20, 10], stderr=True))
    assert "Beyond about 200 samples (95 % interval 140 to 320) a larger batch stops paying" in said
    assert "These numbers are estimates from 640 of 1,797 samples; intervals hold with 95 % confidence." in said
    said = text(build.result(signal=[0.1, 0.1, 0.1], noise=[30, 20, 10], stderr=True, open_ended=True))
    assert "(95 % interval from 140 upwards, without an upper end)" in said
    said = text(build.result(stderr=True, confidence=0.9, n_samples=None))
    assert "from 640 samples; intervals hold with 90 % confidence" in said


def test_an_unresolvable_scale(build):
    result = build.result(signal=[0.1, 0.1, 0.1], noise=[30, 20, 10], stderr=True, unresolvable=True)
    said = text(result)
    assert "not resolvable with this budget of 640 samples: at 95 % confidence it is larger than about 140" in said
    assert "To resolve" not in said and "stops paying" not in said and "is noise, as a share" not in said
    result["noise_scale_samples_needed"] = 7700.0
    assert "To resolve it needs about 12 times as many, 7,700 in all." in text(result)
    result["noise_scale_samples_needed"] = np.inf
    assert "To resolve" not in text(result)


def test_a_series_tells_its_growth(series, build):
    said = text(series)
    assert said.startswith("At step 1,000 and batch size 64 about 92 % of a gradient step is noise")
    assert "From step 0 to step 1,000 the noise scale grew from about 12 to about 770 samples, 64-fold." in said
    assert "stops paying at step 1,000:" in said
    assert "shrank from about 12 to about 3 samples, 4-fold" in text(build.series(steps=(0, 5), grow=0.25))
    assert "hardly changed" in text(build.series(steps=(0, 5), grow=1.02))


def test_a_change_within_the_intervals_is_not_established(build):
    assert "the two intervals overlap" in text(build.series(steps=(0, 5), grow=1.3, stderr=True))
    assert "grew from" in text(build.series(steps=(0, 5), grow=9, stderr=True))


def test_a_series_that_ends_unresolved(half_resolved):
    said = text(half_resolved)
    assert said.startswith("The noise scale at step 1,000 is not resolvable")
    assert "the change of the noise scale cannot be told" in said


def test_layers(build):
    said = text(build.result(signal=[0.1, 0.01, 0.001], noise=[6, 2, 2]))
    assert "the noisiest layer is '4' (about 2,000 samples) and the cleanest '0' (about 60)" in said
    assert "Layer '0' holds the largest part of all the noise, about 60 %." in said
    said = text(build.result(signal=[0.1, 0, 0], noise=[6, 2, 2]))
    assert "Layers '2' and '4' have a full gradient of zero: pure noise." in said
    assert "layer" not in text(build.result(layers=["0"])).lower()


def test_no_gradient_and_no_noise(build):
    said = text(build.result(signal=[0, 0, 0]))
    assert said.startswith("The full gradient is exactly zero: whatever a minibatch step does is noise.")
    assert "inf" not in said and "nan" not in said
    said = text(build.result(noise=[0, 0, 0]))
    assert said.startswith("There is no gradient noise: every sample has the same gradient.")
    assert "inf" not in said and "nan" not in said


def test_the_verdict(practical, build):
    observed = build.observed(practical)
    said = text(practical, observed, build.agreement(practical, observed))
    assert "drawn at the same weights agree with the measurement (the largest of" in said
    assert "no test of agreement was asked for" in text(practical, observed)
    assert "minibatches drawn" not in text(practical)


def test_a_contradiction_comes_first(practical, build):
    observed = build.observed(practical, factor=2.0)
    first = reading(practical, observed, build.agreement(practical, observed))[0]
    assert first.startswith("Real minibatches drawn at the same weights contradict the measurement, so do not rely")


def test_foreign_datasets_are_refused(result, build):
    with pytest.raises(InputError, match=r"Pass the dataset that measure returned\."):
        reading(build.observed(result))
