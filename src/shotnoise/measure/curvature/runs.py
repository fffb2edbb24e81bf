"""The curvature of many runs of one network at once: every quantity with the runs as its leading axis.

Eigenpairs by `lanczos` in lockstep, those of M from each run's n x n Gram matrix; traces and norms from random vectors
with the part of the eigenpairs found taken out, which is known exactly:

    Tr A = sum theta + E z^T B z,   ||A||_F^2 = sum theta^2 + E ||B z||^2,   B = (1 - U U^T) A (1 - U U^T)

so that few vectors do. Both are unbiased. Fully connected networks take all runs of a group in one product; of other
models run after run is looked at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shotnoise.errors import InputError
from shotnoise.measure.covariance import SecondMoment
from shotnoise.measure.curvature.layers import from_layer_on, positions
from shotnoise.measure.curvature.operators import Hessian, Residual
from shotnoise.measure.curvature.written_out import WrittenOut, written_out
from shotnoise.measure.products import GRAM_LIMIT
from shotnoise.measure.spectra.lanczos import End, RitzPairs, lanczos
from shotnoise.problem import Problem

GROUP_BYTES = 16 * 2**20  # of bases and states of the runs that are taken together: about what a cache holds
BASIS, LAYER_BASIS = 4, 40  # vectors per wanted pair and beyond, as for one problem
MOST = 40  # products per wanted pair
NAMES = (
    "hessian_eigenvalues",
    "second_moment_eigenvalues",
    "residual_eigenvalues",
    "residual_lowest_eigenvalues",
    "principal_angle_cosines",
    "subspace_overlap",
    "eigenvector_sines",
    "gradient_share",
    "layer_loading",
    "hessian_trace",
    "second_moment_trace",
    "hessian_frobenius_norm",
    "second_moment_frobenius_norm",
    "residual_frobenius_norm",
    "eigenpair_error",
)
LAYERS = ("layer_hessian_eigenvalues", "subnetwork_hessian_eigenvalues")
FULL = ("hessian_spectrum", "second_moment_spectrum", "residual_spectrum")


@dataclass(frozen=True)
class RunCurvature:
    """What to find at the weights of many runs, in double precision.

    top: pairs of H, M, H_p; tolerance: of residuals, relative to the largest modulus of an eigenvalue. layers: blocks
    and sub-networks, too. full: all eigenvalues of H, M and H_p, from whole matrices. probes: random vectors for traces
    and norms. An eigenvalue that has not converged is NaN; `eigenpair_error` is the largest relative residual.
    """

    top: int = 15
    layers: bool = False
    full: bool = False
    probes: int = 8
    tolerance: float = 1e-6
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES + (LAYERS if self.layers else ()) + (FULL if self.full else ())

    def axes(self, problem: Problem) -> dict[str, dict[str, int]]:
        """The axes of a run's value, by quantity."""
        mode, p, h = {"mode": self.top}, problem.parameter_count, len(problem.layers)
        single: dict[str, dict[str, int]] = {
            name: {} for name in self.names if name.endswith(("_trace", "_norm", "_error"))
        }
        by_layer = {name: {"layer": h, **mode} for name in self.names if name in (*LAYERS, "layer_loading")}
        whole = {name: {"index": p} for name in FULL if self.full}
        found: dict[str, dict[str, int]] = dict.fromkeys(self.names, mode)
        return found | single | by_layer | whole

    def check(self, problem: Problem) -> None:
        """Raises InputError for what cannot be found."""
        p = problem.parameter_count
        if not 1 <= self.top <= max(1, p // 2):
            raise InputError(f"top={self.top}: pairs at both ends of {p} eigenvalues; ask for 1 to {p // 2}")
        if self.probes < 2 or not self.tolerance > 0:
            raise InputError(
                f"probes={self.probes}, tolerance={self.tolerance}: at least 2 probes, a positive tolerance"
            )
        if problem.n > GRAM_LIMIT:
            raise InputError(f"n={problem.n}: the second moment of every run is had from its n x n Gram matrix, for up "
                             f"to {GRAM_LIMIT} samples; record on a subset of the data")  # fmt: skip

    def of(self, problem: Problem, weights: Tensor) -> dict[str, Tensor]:
        """Everything at the weights (R, P), by name, (R, ...); NaN for runs whose weights are not finite."""
        well = torch.isfinite(weights).all(1)
        shapes = {name: tuple(axes.values()) for name, axes in self.axes(problem).items()}
        found = {name: weights.new_full((len(weights), *shape), torch.nan).double() for name, shape in shapes.items()}
        for rows in well.nonzero()[:, 0].split(self._group(problem)):
            for name, values in self._some(problem, weights[rows].detach()).items():
                found[name][rows] = values.to(found[name])
        return found

    def _group(self, problem: Problem) -> int:
        each = 2 * (2 * BASIS * self.top + LAYER_BASIS) * problem.parameter_count + 4 * problem.n**2
        return max(1, GROUP_BYTES // (8 * (each + problem.n * problem.bytes_per_sample // 8)))

    def _some(self, problem: Problem, weights: Tensor) -> dict[str, Tensor]:
        at = _at(problem, weights)
        p, k = weights.shape[1], self.top
        hessian = self._pairs(at.hessian, len(weights), p, weights, "largest")
        residual = self._pairs(at.residual, len(weights), p, weights, "both")
        gram = at.gram().double() / problem.n
        moment, left = torch.linalg.eigh(gram)
        moment, left = moment.flip(1).clamp_min(0), left.flip(2)[:, :, :k].mT
        rank = moment[:, :k] > p * torch.finfo(torch.float64).eps * moment[:, :1]
        V = at.combined(left.contiguous()).double()
        V = torch.where(rank[..., None], V / torch.linalg.vector_norm(V, dim=2, keepdim=True), 0.0)
        U, g = hessian.vectors.double(), at.gradients().double()
        W = U @ V.mT
        g = g / g.abs().amax(1, keepdim=True)
        share = ((U @ g[..., None])[..., 0] / torch.linalg.vector_norm(g, dim=1, keepdim=True)).square().cumsum(1)
        count = torch.arange(1, k + 1, dtype=torch.float64)
        leading = W.square().cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2)[:, : V.shape[1]]
        single = U[:, : V.shape[1]] * W.diagonal(dim1=1, dim2=2)[..., None]
        sines = torch.linalg.vector_norm(V - single, dim=2).clamp_max(1.0)
        error = torch.maximum(_relative(hessian), _relative(residual))
        trace, norm = self._moments(at.hessian, hessian, weights)
        _, difference = self._moments(at.residual, residual, weights)
        pad = k - min(k, problem.n)
        found = {
            "hessian_eigenvalues": self._converged(hessian),
            "second_moment_eigenvalues": _padded(moment[:, :k], pad, 0.0),
            "residual_eigenvalues": self._converged(residual)[:, :k],
            "residual_lowest_eigenvalues": self._converged(residual)[:, k:],
            "principal_angle_cosines": _padded(torch.linalg.svdvals(W).clamp_max(1.0), pad),
            "subspace_overlap": _padded(torch.where(rank, leading / count[: V.shape[1]], torch.nan), pad),
            "eigenvector_sines": _padded(torch.where(rank, sines, torch.nan), pad),
            "gradient_share": share,
            "layer_loading": _loading(problem, U),
            "hessian_trace": trace,
            "second_moment_trace": moment.sum(1),
            "hessian_frobenius_norm": norm,
            "second_moment_frobenius_norm": torch.linalg.matrix_norm(gram),
            "residual_frobenius_norm": difference,
            "eigenpair_error": error,
        }
        found["principal_angle_cosines"][:, : V.shape[1]][~rank] = torch.nan
        if self.layers:
            found |= self._layers(problem, at, weights)
        if self.full:
            found |= _whole(at, weights)
        return found

    def _pairs(self, product: "Product", runs: int, size: int, like: Tensor, end: End) -> RitzPairs:
        k = min(self.top, size // 2) if end == "both" else min(self.top, size)
        wanted = 2 * k if end == "both" else k
        drawn = torch.randn(1, 1, size, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        start = drawn.expand(runs, 1, size).to(like.device).double()
        basis = min(size, BASIS * wanted + LAYER_BASIS)
        most = MOST * wanted + LAYER_BASIS
        return lanczos(product, start, k, end=end, tolerance=self.tolerance, basis=basis, most=most)

    def _converged(self, pairs: RitzPairs) -> Tensor:
        good = pairs.residuals <= self.tolerance * pairs.norms[:, None]
        return torch.where(good, pairs.values, torch.nan)

    def _moments(self, product: "Product", pairs: RitzPairs, like: Tensor) -> tuple[Tensor, Tensor]:
        """Trace and Frobenius norm (R,)."""
        U = pairs.vectors.double()
        size, generator = U.shape[2], torch.Generator().manual_seed(self.seed + 1)
        z = torch.randint(0, 2, (1, self.probes, size), generator=generator).double() * 2 - 1
        z = z.to(U).expand(len(U), -1, -1)
        z = z - (z @ U.mT) @ U
        image = product(z.to(torch.float64))
        image = image - (image @ U.mT) @ U
        trace = pairs.values.sum(1) + (z * image).sum(2).mean(1)
        square = pairs.values.square().sum(1) + image.square().sum(2).mean(1)
        return trace, square.sqrt()

    def _layers(self, problem: Problem, at: "At", like: Tensor) -> dict[str, Tensor]:
        blocks, rests = list[Tensor](), list[Tensor]()
        for layer, where in positions(problem).items():
            for part, found in ((where, blocks), (from_layer_on(problem, layer), rests)):
                pairs = self._pairs(_within(at.hessian, part, like), len(like), len(part), like, "largest")
                found.append(_padded(self._converged(pairs), self.top - pairs.values.shape[1]))
        return dict(zip(LAYERS, (torch.stack(blocks, 1), torch.stack(rests, 1)), strict=True))


Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class At:
    """Products at the weights of some runs, as `WrittenOut` has them."""

    hessian: Product
    residual: Product
    gram: Callable[[], Tensor]
    combined: Product
    gradients: Callable[[], Tensor]


def _at(problem: Problem, weights: Tensor) -> At:
    layers = written_out(problem)
    if layers is None:
        return _one_by_one(problem, weights)
    part = WrittenOut(problem, layers, weights.double())

    def combined(c: Tensor) -> Tensor:
        return part.combined(c if part.runs > 1 else c[0]).reshape(len(c), c.shape[1], -1)

    return At(part.hessian, part.residual, part.gram, combined, part.gradients)


def _one_by_one(problem: Problem, weights: Tensor) -> At:
    """Of any model, a copy of the problem for each run."""
    copies = []
    for row in weights:
        one = problem.replica()
        one.place(row)
        copies.append(one)
    hessians = [Hessian(one, trial=k == 0) for k, one in enumerate(copies)]
    residuals = [Residual(one, trial=False) for one in copies]
    moments = [SecondMoment(one) for one in copies]

    def each(operators: Sequence[Hessian | Residual]) -> Product:
        return lambda v: torch.stack(
            [a.product(x.to(problem.dtype)).double() for a, x in zip(operators, v, strict=True)]
        )

    def combined(c: Tensor) -> Tensor:
        rows = []
        for one, own in zip(copies, c, strict=True):
            g = one.per_sample_gradients()
            rows.append(own.double() @ torch.cat([g[name].flatten(1) for name in one.parameters], 1).double())
        return torch.stack(rows)

    return At(
        each(hessians),
        each(residuals),
        lambda: torch.stack([torch.as_tensor(m.gram) for m in moments]),
        combined,
        lambda: torch.stack([one.flatten(one.gradient()).double() for one in copies]),
    )


def _within(product: Product, where: Tensor, like: Tensor) -> Product:
    """The diagonal block at some positions."""

    def block(v: Tensor) -> Tensor:
        whole = v.new_zeros(*v.shape[:2], like.shape[1])
        whole[..., where] = v
        return product(whole)[..., where]

    return block


def _whole(at: At, weights: Tensor) -> dict[str, Tensor]:
    """All eigenvalues, descending, from matrices, run by run: they are large."""
    runs, p = weights.shape
    H = torch.empty(runs, p, p, dtype=torch.float64)
    R = torch.empty_like(H)
    for start in range(0, p, 32):
        some = torch.eye(p, dtype=torch.float64)[None, start : start + 32].expand(runs, -1, -1).contiguous()
        H[:, start : start + 32], R[:, start : start + 32] = at.hessian(some), at.residual(some)
    H, R = (H + H.mT) / 2, (R + R.mT) / 2
    matrices = dict(zip(FULL, (H, H + R, R), strict=True))
    return {name: torch.linalg.eigvalsh(matrix).flip(1) for name, matrix in matrices.items()}


def _loading(problem: Problem, vectors: Tensor) -> Tensor:
    squares = vectors.square()
    return torch.stack([squares[..., where].mean(-1) for where in positions(problem).values()], 1) * vectors.shape[2]


def _relative(pairs: RitzPairs) -> Tensor:
    return (pairs.residuals / pairs.norms.clamp_min(torch.finfo(torch.float64).tiny)[:, None]).amax(1)


def _padded(values: Tensor, count: int, fill: float = torch.nan) -> Tensor:
    return torch.nn.functional.pad(values, (0, count), value=fill)
