"""Every result of the namespace can be saved, read back equal, written as JSON, and says what its variables are."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import shotnoise as sn

st = sn.predict.stationary
A, U = np.array([[1.0, 0.4], [0.4, 0.5]]), [1.0, -1.0]
X = np.random.default_rng(0).normal(size=(30, 2))
Y = X @ U + np.random.default_rng(1).normal(size=30)


def fitted():
    model = torch.nn.Linear(2, 1, bias=False).double()
    x, y = torch.from_numpy(X), torch.from_numpy(Y)[:, None]
    model.weight.data.copy_(torch.linalg.lstsq(x, y).solution.T)
    return sn.Problem(model, "mse", x, y)


CALLS = {
    "label_noise": lambda: st.label_noise(A, 1.0, [0.1, 5.0], [1, 8]),
    "input_noise": lambda: st.input_noise(A, A, U, 0.1, 8, label_variance=0.5),
    "regularised": lambda: st.regularised(A, U, 0.1, 0.1 * np.eye(2), 8),
    "gaussian": lambda: st.gaussian(A, 0.1, [4, 8], label_variance=1.0),
    "finite_data": lambda: st.finite_data(X, Y, 0.1, [4, 8]),
    "high_dimensional": lambda: st.high_dimensional(X, Y, [0.1, 0.2], [4, 8]),
    "high_dimensional_limit": lambda: st.high_dimensional_limit(30, 2, 1.0, 0.1, 8),
    "rivals": lambda: st.rivals(A, [0.1, 5.0], [4, 8], label_variance=1.0),
    "critical_learning_rate": lambda: st.critical_learning_rate(A, [4, 8]),
    "critical_batch_size": lambda: st.critical_batch_size(A, [0.1, 9.0]),
    "critical_width": lambda: st.critical_width([0.1, 0.2], 8),
    "linear_scaling": lambda: st.linear_scaling(A, 0.1, 8, [16, 32], label_variance=1.0),
    "optimal_weight_decay": lambda: st.optimal_weight_decay(A, U, 0.1, 8),
    "damped_newton": lambda: st.damped_newton(A, 1.0, 0.1, 8),
    "natural_gradient": lambda: st.natural_gradient(A, 1.0, [0.1, 0.2], 8),
    "tail_index": lambda: st.tail_index(1.0, [0.5, 3.0], 4),
    "tail_index_data": lambda: st.tail_index_data(X[:8, 0], [0.1, 0.9], [1, 3]),
    "tail_index_matrix": lambda: st.tail_index_matrix(A, 1.0, 2, particles=50, steps=50),
    "hill": lambda: st.hill(np.random.default_rng(0).pareto(2.0, 1000)),
    "fluctuation_dissipation": lambda: st.fluctuation_dissipation(X[:, 0] ** 2, X[:, 1] ** 2, 0.1, batches=10),
    "minimum": lambda: st.minimum(fitted(), 0.1, [4, 8]),
}


def test_all_functions_are_here():
    assert set(CALLS) | {"dissipation_terms", "DissipationMeter"} == set(st.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_results_are_kept_and_explained(name, tmp_path):
    result = CALLS[name]()
    sn.save(result, tmp_path / "result.zarr")
    xr.testing.assert_identical(sn.load(tmp_path / "result.zarr"), result)
    assert set(json.loads(sn.results.to_json(result))["variables"]) == set(result.data_vars)
    for variable, values in result.data_vars.items():
        assert values.attrs["long_name"] != variable, f"{variable} has no meaning"
    assert result.attrs["theory"]
    covariance = result.get("weight_covariance")
    if covariance is not None:
        for matrix in covariance.values.reshape(-1, 2, 2):
            assert np.isnan(matrix).all() or np.linalg.eigvalsh(matrix)[0] >= 0  # never a negative "variance"
