"""The Gauss-10 ensemble in JAX: `vmap` over the runs, `scan` over the steps, `jit` over all of it; and batched by hand.

    vmap               value_and_grad of one run's loss, vmap over the runs inside a scan over the steps
    runs outside       the scan inside the vmap
    by hand            forward and backward written out with einsum, the runs as the leading axis
    by hand, fused     the same, but the weights change by b outer products, which XLA fuses with the subtraction

Every form has a variant that is given its batches and one that draws them inside ("drawing"), from the cheaper of
JAX's generators ("rbg").
Importing this module keeps XLA to one thread.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["NPROC"] = "1"  # the size of XLA's own pool of threads

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Weights = list[tuple[jax.Array, jax.Array]]  # (W, c) of every layer, (R, o, i) and (R, o), in `vmap` without R
Step = Callable[[Weights, jax.Array], tuple[Weights, Weights]]  # (weights, indices (R, b)) -> new weights, gradients


class JaxEnsemble:
    """Runs of one ReLU network from the same weights, by SGD on cross-entropy."""

    def __init__(
        self, inputs: NDArray[Any], targets: NDArray[Any], layers: list[tuple[NDArray[Any], NDArray[Any]]], rate: float
    ) -> None:
        self.x, self.y = jnp.asarray(inputs), jnp.asarray(targets.astype(np.int32))
        self.layers = [(jnp.asarray(w), jnp.asarray(c)) for w, c in layers]
        self.rate, self.n = rate, len(inputs)

    def weights(self, runs: int) -> Weights:
        return [tuple(jnp.repeat(part[None], runs, 0) for part in layer) for layer in self.layers]  # type: ignore[misc]

    def given(self, form: str) -> Callable[[Weights, jax.Array], Weights]:
        """Compiled: weights and indices (T, R, b) to the weights after T steps."""
        if form == "runs outside":

            def alone(weights: Weights, indices: jax.Array) -> Weights:
                return jax.lax.scan(lambda w, i: (self._one_step(w, i)[0], None), weights, indices)[0]

            return jax.jit(jax.vmap(alone, in_axes=(0, 1)))
        step = self._step(form)
        return jax.jit(lambda weights, indices: jax.lax.scan(lambda w, i: (step(w, i)[0], None), weights, indices)[0])

    def drawing(self, form: str, steps: int, b: int) -> Callable[[Weights], Weights]:
        """Compiled: weights to those after T steps on batches drawn with replacement."""
        step = self._step(form)

        def one(weights: Weights, key: jax.Array) -> tuple[Weights, None]:
            return step(weights, jax.random.randint(key, (len(weights[0][0]), b), 0, self.n))[0], None

        keys = jax.random.split(jax.random.key(0, impl="rbg"), steps)
        return partial(jax.jit(lambda keys, weights: jax.lax.scan(one, weights, keys)[0]), keys)

    def recording(self, form: str) -> Callable[[Weights, jax.Array], jax.Array]:
        """Compiled: full loss, norm of the full gradient and cosine of successive gradients, (3, T, R)."""
        step = self._step(form)
        full = self._full_by_hand if form.startswith("by hand") else jax.vmap(jax.value_and_grad(self._full_loss))

        def one(carried: tuple[Weights, Weights], i: jax.Array) -> tuple[tuple[Weights, Weights], jax.Array]:
            weights, before = carried
            losses, slopes = full(weights)
            new, gradients = step(weights, i)
            cosines = _dot(gradients, before) / jnp.sqrt(_dot(gradients, gradients) * _dot(before, before))
            return (new, gradients), jnp.stack([losses, jnp.sqrt(_dot(slopes, slopes)), cosines])

        def whole(weights: Weights, indices: jax.Array) -> jax.Array:
            nothing = jax.tree.map(jnp.zeros_like, weights)
            return jax.lax.scan(one, (weights, nothing), indices)[1].swapaxes(0, 1)

        return jax.jit(whole)

    def _step(self, form: str) -> Step:
        return {
            "vmap": jax.vmap(self._one_step),
            "by hand": partial(self._by_hand, fused=False),
            "by hand, fused": partial(self._by_hand, fused=True),
        }[form]

    def _one_step(self, weights: Weights, i: jax.Array) -> tuple[Weights, Weights]:
        gradients = jax.grad(lambda w: _cross_entropy(_outputs(w, self.x[i]), self.y[i]))(weights)
        return jax.tree.map(lambda w, g: w - self.rate * g, weights, gradients), gradients

    def _full_loss(self, weights: Weights) -> jax.Array:
        return _cross_entropy(_outputs(weights, self.x), self.y)

    def _by_hand(self, weights: Weights, i: jax.Array, fused: bool) -> tuple[Weights, Weights]:
        states, d = self._errors(weights, self.x[i], self.y[i])
        new, gradients = [], []
        for (w, c), z, dh in zip(weights, states, d, strict=True):
            slopes = _outer_products(dh, z) if fused else jnp.einsum("rbo,rbi->roi", dh, z), dh.sum(1)
            gradients.append(slopes)
            new.append((w - self.rate * slopes[0], c - self.rate * slopes[1]))
        return new, gradients

    def _full_by_hand(self, weights: Weights) -> tuple[jax.Array, Weights]:
        """One product for all runs where the inputs are shared; (R, n, ...) further on."""
        (w, c), *others = weights
        first = jnp.einsum("ni,roi->rno", self.x, w) + c[:, None]
        states, d = self._errors(others, jax.nn.relu(first), self.y)
        d0 = jnp.einsum("rno,roi->rni", d[0], others[0][0]) * (first > 0)
        slopes = [(jnp.einsum("rno,ni->roi", d0, self.x), d0.sum(1))]
        slopes += [(jnp.einsum("rno,rni->roi", e, z), e.sum(1)) for z, e in zip(states, d, strict=True)]
        outputs = jnp.einsum("rni,roi->rno", states[-1], others[-1][0]) + others[-1][1][:, None]
        own = jnp.take_along_axis(outputs, jnp.broadcast_to(self.y, outputs.shape[:2])[..., None], -1)[..., 0]
        return (jax.nn.logsumexp(outputs, -1) - own).mean(1), slopes

    def _errors(self, weights: Weights, z: jax.Array, y: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """Inputs of every layer and the gradient of the mean loss at what leaves it before the ReLU."""
        states = []
        for k, (w, c) in enumerate(weights):
            states.append(z)
            z = jnp.einsum("rbi,roi->rbo", z, w) + c[:, None]
            z = z if k == len(weights) - 1 else jax.nn.relu(z)
        d = [(jax.nn.softmax(z) - jax.nn.one_hot(y, z.shape[-1])) / z.shape[1]]
        for (w, _), z in zip(weights[:0:-1], states[:0:-1], strict=True):
            d.append(jnp.einsum("rbo,roi->rbi", d[-1], w) * (z > 0))
        return states, d[::-1]


def flattened(weights: Weights) -> NDArray[Any]:
    """(R, P), in the order of the modules' parameters."""
    runs = len(weights[0][0])
    return np.concatenate([np.asarray(part).reshape(runs, -1) for layer in weights for part in layer], 1)


def _outputs(weights: Weights, z: jax.Array) -> jax.Array:
    for k, (w, c) in enumerate(weights):
        z = z @ w.T + c
        z = z if k == len(weights) - 1 else jax.nn.relu(z)
    return z


def _cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    own = jnp.take_along_axis(outputs, y[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(outputs, 1) - own).mean()


def _outer_products(d: jax.Array, z: jax.Array) -> jax.Array:
    return sum(d[:, k, :, None] * z[:, k, None, :] for k in range(d.shape[1]))


def _dot(a: Weights, b: Weights) -> jax.Array:
    return sum((s * t).reshape(len(s), -1).sum(1) for s, t in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
