"""Lanczos that orthogonalises only when it must: the loss that is foreseen beside the one that is there."""

from importlib import import_module

import numpy as np
import pytest
import torch

from shotnoise.measure.spectra import lanczos
from shotnoise.measure.spectra.operator import Symmetric
from shotnoise.measure.spectra.orthogonality import Loss

module = import_module("shotnoise.measure.spectra.lanczos")
VALUES = torch.cat([torch.tensor([10, 9, 8.5, 3, 2.9]), torch.linspace(-1, 1, 595)]).double()


class Blind(Loss):
    """Broken: it sees no loss."""

    def spreads(self, size, beta):
        return False


class Forgetful(Loss):
    """Broken: every loss begins from rounding again."""

    def spreads(self, size, beta):
        self.W[:] = torch.eye(self.W.shape[1])
        return super().spreads(size, beta)


class Trusting(Loss):
    """Broken: it bears any loss that leaves T what it is, whatever the tolerance."""

    def __init__(self, T, epsilon, tolerance):
        super().__init__(T, epsilon, tolerance)
        self.most = 1e7 * self.most


def recurrence(monkeypatch, loss=Loss, tolerance=1e-6, steps=120, basis=60, rest_only=False):
    """By step: the largest inner product of two rows, that foreseen, and how often rows were mended; and the space."""
    monkeypatch.setattr(module, "LONG", 0)
    monkeypatch.setattr(module, "Loss", loss)
    mended = []
    mend = module._Space._mended

    def counting(self, rest):
        mended.append(self.size)
        row = self.Q[:, self.size - 1].clone()
        rest = mend(self, rest)
        if rest_only:
            self.Q[:, self.size - 1] = row
        return rest

    monkeypatch.setattr(module._Space, "_mended", counting)
    start = torch.randn(1, 1, len(VALUES), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    space = module._Space(lambda v: v * VALUES, start, basis, tolerance)
    true, foreseen = [], []
    for _ in range(steps):
        if space.is_full:
            space.restart(module._kept("largest", 6, space))
        space.grow()
        rows = torch.cat([space.Q[0, : space.size], space.next[0]])
        apart = rows @ rows.T
        true.append(float((apart - torch.diag(apart.diagonal())).abs().max()))
        W = space.loss.W[0, : space.size + 1, : space.size + 1]
        foreseen.append(float((W - torch.diag(W.diagonal())).abs().max()))
    return np.array(true), np.array(foreseen), len(mended), space


def relation(space):
    """The largest row of A Q^T - Q^T T - next C, relative to the norm of A."""
    Q, n = space.Q[0, : space.size], space.next[0]
    rest = Q * VALUES - space.T[0, : space.size, : space.size] @ Q - space.coupling[0] @ n
    return float(rest.norm(dim=1).max() / VALUES.abs().max())


@pytest.mark.parametrize("tolerance", [1e-6, 1e-9])
@pytest.mark.parametrize("basis", [130, 30])
def test_the_loss_is_foreseen_and_stays_within_its_bounds(monkeypatch, basis, tolerance):
    true, foreseen, mended, space = recurrence(monkeypatch, tolerance=tolerance, basis=basis)
    assert true.max() <= space.loss.most
    assert (true <= foreseen + 20 * torch.finfo(torch.float64).eps).all(), "never worse than foreseen"
    assert 0 < mended <= 120 / 3, "and most steps need nothing"
    assert relation(space) <= tolerance, "what is taken out does not spoil the residuals"


@pytest.mark.parametrize("twin", [{"loss": Blind}, {"loss": Forgetful}, {"rest_only": True}])
def test_broken_estimates_are_found_out(monkeypatch, twin):
    true, _, _, space = recurrence(monkeypatch, basis=130, **twin)
    assert true.max() > space.loss.most


def test_a_loss_taken_for_harmless_spoils_the_recurrence(monkeypatch):
    fine = relation(recurrence(monkeypatch, tolerance=1e-10)[-1])
    assert fine <= 1e-10
    monkeypatch.undo()
    assert relation(recurrence(monkeypatch, Trusting, tolerance=1e-10)[-1]) > 1e-10


def test_without_it_copies_appear_that_are_none(monkeypatch):
    _, _, _, space = recurrence(monkeypatch, Blind, basis=130)
    values = space.eigen()[0][0]
    assert (values > 9.99).sum() > 1, "of an eigenvalue that is single"


def test_a_block_that_all_but_lies_within_the_basis(monkeypatch):
    """What mending leaves of it is small, and so orthogonalised again before it counts as a direction."""
    space = recurrence(monkeypatch, steps=20)[-1]
    space.loss.most = 0
    inside = torch.ones(1, 1, 20).double() @ space.Q[:, :20]
    outside = torch.randn(inside.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outside = outside - (outside @ space.Q[:, :20].mT) @ space.Q[:, :20]
    coupling = space._advance(inside + 1e-9 * outside)
    assert float((space.Q[0, :20] @ space.next[0].T).abs().max()) < 1e-11, "within what the basis itself has lost"
    assert float(space.next.norm()) == pytest.approx(1, rel=1e-12)
    assert float(coupling) == pytest.approx(1e-9 * float(outside.norm()), rel=1e-5)


def test_where_residuals_bear_no_loss_every_row_is_orthogonalised(monkeypatch):
    monkeypatch.setattr(module, "LONG", 0)
    for dtype, tolerance, waits in (
        (torch.float64, 1e-6, True), (torch.float64, 1e-13, False), (torch.float32, 1e-4, False)
    ):  # fmt: skip
        start = torch.ones(1, 1, 50, dtype=dtype)
        assert (module._Space(lambda v: v, start, 20, tolerance).loss is not None) == waits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_long_vectors(dtype):
    """Those that are long enough by default, with a spectrum whose ends are known."""
    p = module.LONG
    values = torch.cat([VALUES[:5], torch.linspace(-1, 1, p - 5, dtype=torch.float64)])

    class Diagonal(Symmetric):
        def product(self, vectors):
            return vectors * values.to(vectors)

    found = Diagonal(p, dtype, torch.device("cpu")).top(5)
    np.testing.assert_allclose(found.values, VALUES[:5], rtol=2e-5 if dtype == torch.float32 else 1e-11)
    assert found.converged.all() and found.vectors.shape == (p, 5)
    again = values.numpy()[:, None] * found.vectors - found.vectors * found.values
    rounding = 20 * torch.finfo(dtype).eps * 10
    np.testing.assert_allclose(found.residuals, np.linalg.norm(again, axis=0), rtol=1e-3, atol=rounding)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(5), atol=rounding)


@pytest.mark.parametrize("wanted", [1, 3])
@pytest.mark.parametrize("most", [5, 8, 9, 12, 40, 200])
def test_never_more_products_than_allowed_and_residuals_of_the_operator(wanted, most):
    """At a tolerance that rounding does not let it reach, whatever is left for the residuals."""
    counted = [0]

    def product(v):
        counted[0] += v.shape[1]
        return v * VALUES

    start = torch.randn(1, 1, len(VALUES), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = lanczos(product, start, wanted, tolerance=1e-17, basis=40, most=most)
    assert found.products == counted[0] <= most
    true = (found.vectors[0] * VALUES - found.values[0][:, None] * found.vectors[0]).norm(dim=1)
    np.testing.assert_allclose(found.residuals[0], true, atol=1e-13)
    assert (found.residuals > 1e-17 * found.norms[:, None]).any()
