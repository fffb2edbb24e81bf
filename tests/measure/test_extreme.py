"""The outermost eigenvalue against whole matrices: of either sign, close ones, none, too few products."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shotnoise as sn
from shotnoise.measure.curvature import Hessian, extreme
from shotnoise.measure.spectra.operator import Symmetric


class Given(Symmetric):
    """A matrix of known eigenvalues in a random basis; how many vectors were multiplied."""

    def __init__(self, values, seed=0):
        super().__init__(len(values), torch.float64, torch.device("cpu"))
        Q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
        self.matrix, self.products = torch.from_numpy(Q @ np.diag(values) @ Q.T), 0

    def product(self, vectors: Tensor) -> Tensor:
        self.products += len(vectors)
        return vectors @ self.matrix


@pytest.mark.parametrize("size", [1, 2, 3, 300])
@pytest.mark.parametrize("sign", [1, -1])
def test_both_ends_or_the_upper_one(size, sign):
    values = sign * np.concatenate([[3.0], -np.linspace(0.1, 2.0, size - 1)])
    A = Given(values)
    for modulus, expected in ((True, 3.0 * sign), (False, values.max())):
        found = extreme(A, modulus=modulus)
        assert found.converged and found.value == pytest.approx(expected, rel=1e-9)
        moved = A.matrix.numpy() @ found.vector
        assert np.linalg.norm(found.vector) == pytest.approx(1, rel=1e-12)
        assert found.vector @ moved == pytest.approx(found.value, rel=1e-12)
        residual = np.linalg.norm(moved - found.value * found.vector)
        assert residual == pytest.approx(found.residual, abs=1e-9) and residual <= 1e-6 * 3


@pytest.mark.parametrize("seed", range(5))
def test_with_too_few_products_it_is_from_below_and_says_so(seed):
    """A dense spectrum: what was not found is further out, and an eigenvalue lies within the residual."""
    values = np.linspace(-0.9, 1.0, 400)
    for most in (2, 5, 10, 20):
        A = Given(values, seed)
        for modulus in (True, False):
            A.products = 0
            found = extreme(A, modulus=modulus, tolerance=1e-6, most=most, seed=seed)
            assert not found.converged and A.products <= most
            assert abs(found.value) < 1 and np.abs(values - found.value).min() <= found.residual


def test_ends_of_the_same_modulus_are_no_obstacle():
    found = extreme(Given(np.concatenate([[-1.0, 1.0], np.linspace(-0.5, 0.5, 100)])), modulus=True)
    assert found.converged and abs(found.value) == pytest.approx(1, rel=1e-9)


def test_no_curvature_at_all():
    found = extreme(Given(np.zeros(50)), modulus=True)
    assert (found.value, found.residual, found.converged) == (0.0, 0.0, True)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_of_a_network(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), activation(), nn.Linear(9, 4)).double()
    problem = sn.Problem(model, "cross_entropy", torch.randn(40, 6).double(), torch.arange(40) % 4, l2=0.1)
    H = Hessian(problem)
    values = np.linalg.eigvalsh(H.to_dense())
    assert extreme(H).value == pytest.approx(values[-1], rel=1e-9)
    assert abs(extreme(H, modulus=True).value) == pytest.approx(np.abs(values).max(), rel=1e-9)


def test_kinks_of_the_loss_count_as_flat_where_that_is_asked_for():
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = sn.Problem(model, lambda o, y: (o - y).abs().sum(1), x, torch.zeros(8, 1).double(), l2=0.25)
    with pytest.raises(sn.InputError, match="piecewise linear"):
        Hessian(problem)
    assert extreme(Hessian(problem, trial=False)).value == pytest.approx(0.25, rel=1e-12)
