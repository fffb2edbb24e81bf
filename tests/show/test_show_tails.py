"""The stability plot of a tail estimate shows the stored numbers."""

import numpy as np
import pytest

import shotnoise as sn
from shotnoise import show


def test_the_line_and_its_band():
    samples = np.random.default_rng(0).pareto(3.0, 5000) + 1
    estimate = sn.predict.stationary.hill(samples)
    figure = show.tail_stability(estimate, exact=3.0)
    (line,) = (line for line in figure.axes[0].lines if line.get_gid() == "tail index")
    np.testing.assert_array_equal(line.get_ydata(), estimate["tail_index"])
    assert figure.axes[0].get_xscale() == "log" and len(figure.axes[0].collections) == 1


def test_one_number_has_no_plot():
    samples = np.random.default_rng(0).pareto(3.0, 5000) + 1
    with pytest.raises(sn.InputError, match="several tail_samples"):
        show.tail_stability(sn.predict.stationary.hill(samples, 100))
