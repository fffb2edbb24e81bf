"""H, M, H_p and F against matrices from the definitions, written out or through autograd, kept or made again."""

from importlib import import_module

import curvature_twins as twins
import numpy as np
import pytest
import torch
from curvature_twins import MODELS, problem_of
from torch import nn

import shotnoise as sn
from shotnoise.errors import InputError, NonFiniteError, PerSampleGradientError
from shotnoise.losses import NAMED
from shotnoise.measure.curvature import GaussNewton, Hessian, Residual, SecondMoment, gauss_newton_diagonal
from shotnoise.measure.curvature.operators import Kept
from shotnoise.measure.curvature.written_out import WrittenOut, written_out

BY_MODEL = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
SETTINGS = pytest.mark.parametrize(("loss", "l2"), [("cross_entropy", 0.0), ("mse", 0.3), ("logistic", 0.1)])


def close(found, expected, rtol=1e-11):
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * np.abs(expected).max() + 1e-15)


@BY_MODEL
@SETTINGS
def test_every_operator_is_its_definition(model, loss, l2):
    problem = problem_of(model, loss, l2=l2)
    H, g = twins.hessian(problem), twins.gradients(problem)
    M = g.T @ g / problem.n
    close(Hessian(problem).to_dense(), H)
    close(SecondMoment(problem).to_dense(), M)
    close(Residual(problem).to_dense(), M - H)
    close(Residual(problem, 2.5).to_dense(), 2.5 * M - H)
    close(GaussNewton(problem).to_dense(), twins.gauss_newton(problem))
    x = np.random.default_rng(0).normal(size=(len(H), 3))
    for operator, dense in ((Hessian(problem), H), (SecondMoment(problem), M), (Residual(problem), M - H)):
        close(operator @ x, dense @ x)
        close(operator @ x[:, 0], dense @ x[:, 0])
        close(operator.diagonal(), np.diag(dense))
    assert not np.allclose(H, twins.gauss_newton(problem), rtol=1e-3) or (model.name == "linear" and not l2)


@BY_MODEL
def test_made_again_chunk_by_chunk_it_is_the_same(model, monkeypatch):
    problem = problem_of(model, l2=0.1)
    small = sn.Problem(problem.model, "cross_entropy", *twins.data(problem), l2=0.1, chunk_size=5)
    v = np.random.default_rng(0).normal(size=(problem.parameter_count, 2))
    for make in (Hessian, Residual, GaussNewton):
        kept, again = make(problem), make(small, memory=0)
        assert kept.keeps and not again.keeps
        close(again @ v, kept @ v)
        close(again @ v, kept @ v)


@BY_MODEL
def test_products_through_autograd_are_those_written_out(model, monkeypatch):
    problem = problem_of(model, l2=0.2)
    first = [make(problem).to_dense() for make in (Hessian, Residual, GaussNewton)]
    monkeypatch.setattr(import_module("shotnoise.measure.curvature.operators"), "written_out", lambda problem: None)
    for expected, make in zip(first, (Hessian, Residual, GaussNewton), strict=True):
        close(make(problem).to_dense(), expected)


@pytest.mark.parametrize(
    "model", [m for m in MODELS if m.name not in ("convolution", "layer-norm")], ids=lambda m: m.name
)
@SETTINGS
def test_many_runs_at_once_are_those_one_by_one(model, loss, l2):
    problem = problem_of(model, loss, l2=l2)
    layers = written_out(problem)
    weights = torch.randn(3, problem.parameter_count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for count in (1, 4):
        vectors = torch.randn(3, count, problem.parameter_count, generator=torch.Generator().manual_seed(3)).double()
        together = WrittenOut(problem, layers, weights)
        one = problem.replica()
        for r in range(3):
            torch.nn.utils.vector_to_parameters(weights[r], one.model.parameters())
            H, g = twins.hessian(one), twins.gradients(one)
            M, v = g.T @ g / one.n, vectors[r].numpy()
            close(together.hessian(vectors)[r], v @ H)
            close(together.second_moment(vectors)[r], v @ M)
            close(together.residual(vectors)[r], v @ (M - H))
            close(together.gauss_newton(vectors)[r], v @ twins.gauss_newton(one))
            close(together.gram()[r], g @ g.T)
            close(together.gradients()[r], g.mean(0))
            c = torch.randn(3, count, one.n, generator=torch.Generator().manual_seed(4)).double()
            close(together.combined(c)[r], c[r].numpy() @ g)


@BY_MODEL
@SETTINGS
def test_the_diagonal_without_products(model, loss, l2):
    problem = problem_of(model, loss, l2=l2)
    close(gauss_newton_diagonal(problem), np.diag(twins.gauss_newton(problem)), 1e-10)


@BY_MODEL
@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "logistic"])
def test_written_down_and_found_factors_of_a_loss_agree(model, loss):
    """The same loss as a function of one's own, whose second derivative has to be factored."""
    named = problem_of(model, loss)
    own = sn.Problem(named.model, lambda f, t: NAMED[loss].per_sample(f, t), *twins.data(named))
    close(gauss_newton_diagonal(own), gauss_newton_diagonal(named), 1e-10)


@pytest.mark.parametrize("named", [True, False])
def test_the_diagonal_of_a_saturated_softmax_in_single_precision(named):
    """Second derivatives down to 1e-44, at some of which a factorisation in single precision gives up."""
    model, loss = nn.Linear(1, 10, bias=False), NAMED["cross_entropy"].per_sample
    with torch.no_grad():
        model.weight.copy_(torch.tensor([-102.6, -22.3, -69.6, -120, 0, -51.7, -46, -120, -120, -100.7])[:, None])
    x, y = torch.linspace(0.1, 1.5, 1200)[:, None], torch.arange(1200) % 10
    problem = sn.Problem(model, "cross_entropy" if named else lambda f, t: loss(f, t), x, y)
    pi = model(x).detach().double().softmax(1)
    expected = (pi * (1 - pi) * x.double().square()).mean(0).numpy()
    np.testing.assert_allclose(gauss_newton_diagonal(problem), expected, rtol=1e-4, atol=1e-5 * expected.max())


@BY_MODEL
def test_for_relu_networks_and_for_them_alone_it_is_that_of_the_hessian(model):
    """At a kink there is no second derivative; the diagonal is that of the linear piece, and never negative."""
    problem = problem_of(model)
    H, F = Hessian(problem).diagonal(), gauss_newton_diagonal(problem)
    if model.piecewise_linear:
        close(H, F)
        assert (H >= -1e-16).all()
    else:
        assert np.abs(H - F).max() > 0.03 * np.abs(H).max()


def test_a_kink_is_not_in_the_hessian():
    """f = relu(w x) with squared loss, at w = 0: autograd takes the slope 0 there, and H sees only the penalty."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double()
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 2.0, dtype=torch.float64)
    torch.nn.utils.vector_to_parameters(torch.tensor([0.0, 1.0], dtype=torch.float64), model.parameters())
    problem = sn.Problem(model, "mse", x, y)
    assert not Hessian(problem).to_dense().any()
    slopes = []
    for w in (1e-6, -1e-6):
        torch.nn.utils.vector_to_parameters(torch.tensor([w, 1.0], dtype=torch.float64), model.parameters())
        slopes.append(float(problem.gradient()["0.weight"]))
    assert abs(slopes[0] - slopes[1]) > 1.9, "a finite difference across the kink is huge"


@BY_MODEL
@pytest.mark.parametrize("end", ["largest", "both"])
def test_eigenpairs_and_their_residuals(model, end):
    problem = problem_of(model)
    H = twins.hessian(problem)
    values = np.linalg.eigvalsh(H)
    pairs = Hessian(problem).top(3, 1e-9, end=end)
    expected = values[::-1][:3] if end == "largest" else np.concatenate([values[::-1][:3], values[:3]])
    close(pairs.values, expected, 1e-8)
    residuals = np.linalg.norm(H @ pairs.vectors - pairs.vectors * pairs.values, axis=0)
    np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-13)
    assert pairs.converged.all()


def test_what_has_not_converged_is_kept_and_marked():
    problem = problem_of(MODELS[1])
    pairs = Hessian(problem).top(4, 1e-12, most=8)
    assert len(pairs.values) == 4 and not pairs.converged.all() and np.isfinite(pairs.values).all()
    exact = np.linalg.eigvalsh(twins.hessian(problem))
    assert all(np.abs(exact - v).min() <= r + 1e-14 for v, r in zip(pairs.values, pairs.residuals, strict=True))


def test_single_precision_against_double():
    for model in MODELS:
        single, double = (problem_of(model, dtype=dtype) for dtype in (torch.float32, torch.float64))
        torch.nn.utils.vector_to_parameters(twins.start(single).double(), double.model.parameters())
        double = sn.Problem(double.model, "cross_entropy", twins.data(single)[0].double(), twins.data(single)[1])
        close(Hessian(single).to_dense(), Hessian(double).to_dense(), 1e-5)
        pairs = Hessian(single).top(2)
        close(pairs.values, Hessian(double).top(2).values, 1e-4)
        assert pairs.tolerance == 1e-4 and Hessian(double).top(2).tolerance == 1e-6


def test_forward_over_reverse_is_no_oracle_where_there_is_layer_norm():
    """Ours against finite differences of the gradient."""
    problem = problem_of(MODELS[-1])
    H, flat, step = Hessian(problem).to_dense(), twins.start(problem), 1e-5
    for j in (0, 7, 26, 33):
        ends = []
        for sign in (1, -1):
            moved = flat.clone()
            moved[j] += sign * step
            torch.nn.utils.vector_to_parameters(moved, problem.model.parameters())
            ends.append(problem.flatten(problem.gradient()).numpy())
        torch.nn.utils.vector_to_parameters(flat, problem.model.parameters())
        np.testing.assert_allclose(H[j], (ends[0] - ends[1]) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("model", [MODELS[1], MODELS[-1]], ids=lambda m: m.name)
def test_nothing_of_the_user_is_touched(model):
    problem = problem_of(model)
    before = [p.detach().clone() for p in problem.model.parameters()]
    with torch.inference_mode():
        Hessian(problem).top(2)
    state = torch.random.get_rng_state()
    Residual(problem).to_dense()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, problem.model.parameters(), strict=True))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d):
        return d


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        return Once.apply(self.a(x))


def test_what_has_no_second_derivative_is_refused():
    x, y = twins.data(problem_of(MODELS[0], "mse"))
    absolute = sn.Problem(nn.Linear(4, 3).double(), lambda f, t: (f - t).abs().sum(1), x, y)
    with pytest.raises(InputError, match=r"piecewise linear in the outputs .*an absolute value.* needs a smooth loss"):
        Hessian(absolute) @ np.ones(15)
    with pytest.raises(InputError, match=r"cannot be differentiated twice .*marked once_differentiable"):
        Hessian(sn.Problem(Twice().double(), "mse", x, y)) @ np.ones(15)


def test_models_that_draw_or_mix_are_refused():
    x, y = twins.data(problem_of(MODELS[0]))
    dropping = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    with pytest.raises(PerSampleGradientError):
        Hessian(sn.Problem(dropping, "cross_entropy", x, y))
    Hessian(sn.Problem(dropping.eval(), "cross_entropy", x, y)).top(1)


def test_memory_and_numbers_that_do_not_fit_are_refused():
    problem = problem_of(MODELS[1])
    p = problem.parameter_count
    with pytest.raises(
        InputError, match=rf"memory=500 bytes hold 0 vectors of {p} numbers; 3 eigenpairs need at least 7"
    ):
        Hessian(problem).top(3, memory=500)
    with pytest.raises(InputError, match=f"k={p + 1} eigenpairs of a matrix of {p} rows; ask for 1 to {p}"):
        Hessian(problem).top(p + 1)
    with pytest.raises(InputError, match=r"end='middle': one of 'largest', 'smallest', 'both'"):
        Hessian(problem).top(1, end="middle")


def test_losses_that_are_not_finite_are_named():
    x, y = twins.data(problem_of(MODELS[1]))
    x[3] = float("nan")
    with pytest.raises(NonFiniteError, match="sample 3"):
        Hessian(sn.Problem(twins.stack(4, 5, 3).double(), "cross_entropy", x, y)).top(1)


def test_a_loss_that_is_not_convex_has_no_squares():
    x, y = twins.data(problem_of(MODELS[0], "mse"))
    problem = sn.Problem(nn.Linear(4, 3).double(), lambda f, t: (f - t).square().sum(1).sin(), x, y)
    with pytest.raises(InputError, match=r"not convex in the outputs .*GaussNewton\(problem\)\.diagonal\(\)"):
        gauss_newton_diagonal(problem)
    close(GaussNewton(problem).to_dense(), Hessian(problem).to_dense())  # the network is linear


def test_large_problems_are_not_kept_by_default():
    problem = problem_of(MODELS[1])
    assert isinstance(Hessian(problem), Kept) and not Hessian(problem, memory=10).keeps


def test_many_kinks_raise_no_false_alarm():
    """Tens of thousands of ReLUs and maxima: some step of the trial has to stay clear of their kinks."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5)
    )
    problem = sn.Problem(model, "cross_entropy", torch.randn(12, 1, 28, 28), torch.randint(5, (12,)))
    assert Hessian(problem).top(1).converged.all()
