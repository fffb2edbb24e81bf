"""The next coefficient of the gradient's variance, exactly, for models of a few dozen weights.

With weights w = w_GD + d1 + d2 + d3 + ... ordered by how many times the noise enters, and grad L likewise,

    d1' = J d1 - a xi,    d2' = J d2 - a (T[d1, d1] / 2 + Dxi d1),
    d3' = J d3 - a (T[d1, d2] + F[d1, d1, d1] / 6 + Dxi d2 + D^2xi[d1, d1] / 2),        J = I - a H,

H, T, F: second to fourth derivatives of the loss at w_GD. The noise xi(w) of a batch is a random function of the
weights, drawn anew at every step, with second cumulants kappa times those of one sample (per-sample gradients c_i,
Hessians A_i, third derivatives B_i, all centred), third ones a factor kappa_3 times, and higher ones of order 1/b^3. So

    var(grad L) = kappa E|G1|^2 + kappa^2 (E|G2|^2 - |E G2|^2 + 2 E<G1, G3>) + 2 kappa_3 E<G1, G2> + O(1/b^3)

with Gaussian means but in the last, and var(g) has kappa^2 (D tr Sigma . E d2 + E D^2 tr Sigma[d1, d1] / 2) more. All
means follow from these, where the product of the parts is taken out of E d1 d1 d2 and E d2 d2,

    P = E d1 d1,   m = E d2,   U = E d1 d1 d2,   W = E d2 d2,   V = E d1 d3,      S = E d1 d1 d1,   R = E d1 d2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.evaluation import Evaluation, quiet
from shotnoise.per_sample.elementary import ElementaryNorms
from shotnoise.per_sample.explicit import elementary_kernels
from shotnoise.predict.propagation.path import Path, Row
from shotnoise.problem import Problem
from shotnoise.samples import Batch, tree_map


@dataclass
class SecondOrder:
    """The means of the module's docstring, in units of kappa, kappa^2 or kappa_3, from 0 at the start."""

    P: Tensor
    m: Tensor
    U: Tensor
    W: Tensor
    V: Tensor
    S: Tensor
    R: Tensor
    here: "_Derivatives | None" = field(default=None, repr=False)

    @classmethod
    def start(cls, problem: Problem) -> "SecondOrder":
        p = problem.parameter_count
        line, square, cube = (torch.zeros(*[p] * k, dtype=torch.float64) for k in (1, 2, 3))
        return cls(square, line, cube, square, square, cube, square)

    def look(self, path: Path) -> Row:
        """The derivatives are kept for the move that follows."""
        self.here = d = _Derivatives.at(path.problem, self.P)
        H, T = d.H, d.T
        bent = torch.einsum("abi,kab->ik", self.U, T)  # E d2 T[d1, d1]
        second = H @ self.W @ H + _twice(H @ bent) / 2 + self._pairs() / 2
        third = H @ self.V @ H + H @ self._mixed() + H @ self.P @ d.F / 2
        full = (second + 2 * third).diagonal()
        skew = 2 * (H @ self.R @ H + H @ torch.einsum("iab,kab->ik", self.S, T) / 2).diagonal()
        noise = 2 * (d.c * (d.A @ self.m)).mean(0) + (d.c * d.B).mean(0)
        noise = noise + torch.einsum("nka,ab,nkb->k", d.A, self.P, d.A) / len(d.c)
        return {
            "full_gradient_variance_second": path.by_layer(full),
            "full_gradient_variance_skewness": path.by_layer(skew),
            "gradient_variance_second": path.by_layer(full + noise),
            "gradient_variance_skewness": path.by_layer(skew),
        }

    def move(self, path: Path, rate: float) -> None:
        assert self.here is not None
        d, a, n = self.here, rate, len(self.here.c)
        J = torch.eye(len(self.P), dtype=torch.float64) - a * d.H
        JP = J @ self.P
        own = torch.einsum("ni,nkl->ikl", d.c, d.A) / n  # E xi Dxi
        crossed = torch.einsum("ikl,jl->ijk", own, JP)
        bent = torch.einsum("abi,kab->ik", self.U, d.T)
        cubes = torch.einsum("iab,kab->ik", self.S, d.T)
        U = _transformed(J, self.U) - a * torch.einsum("ia,kab,jb->ijk", JP, d.T, JP)
        shaken = torch.einsum("nka,ab,nlb->kl", d.A, self.P, d.A) / n
        W = J @ self.W @ J.T - a / 2 * _twice(J @ bent) + a**2 / 2 * self._pairs() + a**2 * shaken
        V = J @ self.V @ J.T - a * J @ self._mixed() - a / 2 * JP @ d.F
        V = V + a**2 * (own @ self.m + d.c.T @ d.B / (2 * n))
        R = J @ self.R @ J.T - a / 2 * J @ cubes
        S = _transformed(J, self.S) - a**3 * torch.einsum("ni,nj,nk->ijk", d.c, d.c, d.c) / n
        m = J @ self.m - a / 2 * torch.einsum("kab,ab->k", d.T, self.P)
        P = JP @ J.T + a**2 * d.c.T @ d.c / n
        self.P, self.m, self.U, self.W, self.V, self.S, self.R = (
            P, m, U + a**2 * (crossed + crossed.transpose(0, 1)), W, V, S, R,
        )  # fmt: skip

    def _pairs(self) -> Tensor:
        """Half the covariance of T[d1, d1]: tr T_k P T_l P."""
        assert self.here is not None
        moved = torch.einsum("kab,bc->kac", self.here.T, self.P)
        return torch.einsum("kac,lca->kl", moved, moved)

    def _mixed(self) -> Tensor:
        """E d1 T[d1, d2]"""
        assert self.here is not None
        T = self.here.T
        return torch.einsum("iab,kab->ik", self.U, T) + self.P @ torch.einsum("kab,b->ak", T, self.m)


@dataclass(frozen=True)
class _Derivatives:
    """At one step: H (p, p), T (p, p, p), F = D^4 L[P] (p, p); c (n, p), A (n, p, p), B = B_i[P] (n, p), centred."""

    H: Tensor
    T: Tensor
    F: Tensor
    c: Tensor
    A: Tensor
    B: Tensor

    @classmethod
    def at(cls, problem: Problem, P: Tensor) -> "_Derivatives":
        """By reverse mode throughout, in float64."""
        evaluation = Evaluation(problem.model, problem.loss_spec, torch.float64)
        x, y = evaluation.place(problem.samples.batch(torch.arange(problem.n)))
        w = problem.flatten(evaluation.leaves).detach()
        P = P.to(w)

        def mean(w: Tensor) -> Tensor:
            return evaluation.losses(x, y, problem.unflatten(w), checked=False).mean()

        def single(w: Tensor, x: Batch, y: Batch) -> Tensor:
            one, target = tree_map(lambda t: t[None], (x, y))
            return evaluation.losses(one, target, problem.unflatten(w), checked=False)[0]

        def each(function: Callable[..., Tensor]) -> Tensor:
            values = torch.func.vmap(function, in_dims=(None, 0, 0))(w, x, y)
            return (values - values.mean(0)).cpu()

        grad, jacobian = torch.func.grad, torch.func.jacrev
        hessian, own = jacobian(grad(mean)), jacobian(grad(single))

        def curvature(w: Tensor) -> Tensor:
            return torch.sum(P * hessian(w))

        def own_curvature(w: Tensor, x: Batch, y: Batch) -> Tensor:
            return torch.sum(P * own(w, x, y))

        try:
            with quiet(), elementary_kernels(), ElementaryNorms(), torch.no_grad():
                return cls(
                    H=hessian(w).cpu() + problem.l2 * torch.eye(len(w), dtype=torch.float64),
                    T=jacobian(hessian)(w).cpu(),
                    F=jacobian(grad(curvature))(w).cpu(),
                    c=each(grad(single)),
                    A=each(own),
                    B=each(grad(own_curvature)),
                )
        except RuntimeError as error:
            raise InputError(
                f"second order: this model cannot be differentiated four times by torch.func ({error}); "
                "give a number of probes, which need first derivatives only"
            ) from error


def _twice(matrix: Tensor) -> Tensor:
    return matrix + matrix.T


def _transformed(J: Tensor, cube: Tensor) -> Tensor:
    """J on every index."""
    return torch.einsum("ia,jb,kc,abc->ijk", J, J, J, cube)
