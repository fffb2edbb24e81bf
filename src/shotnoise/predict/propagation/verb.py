"""The variance of any network's gradient for large batches, before a single stochastic step is taken.

Along the path of gradient descent, w <- w - a grad L(w), with Hessian H_t and per-sample covariance Sigma_t,

    P_{t+1} = (I - a H_t) P_t (I - a H_t)^T + a^2 Sigma_t,   P_0 = 0,
    var(g_t) = kappa (tr Sigma_t + tr H_t P_t H_t) + O(1/b^2),     var(grad L) = kappa tr H P H,    var(L) = kappa
    g^T P g.

Small models: P itself. Large ones: probes, each a deviation that obeys the linearised step delta <- (I - a H) delta -
a xi with xi one centred per-sample gradient drawn at the path; the mean of ||H delta||^2 over the probes estimates tr
H P H. One set of probes serves every batch size. The next order is in `second_order` and `amplitudes`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from shotnoise import results, schedules
from shotnoise.errors import InputError
from shotnoise.population import Population
from shotnoise.predict.propagation.amplitudes import Amplitudes
from shotnoise.predict.propagation.first_order import Covariance, Probes
from shotnoise.predict.propagation.path import Array, Path, Row
from shotnoise.predict.propagation.second_order import SecondOrder
from shotnoise.predict.propagation.validity import beside, valid_from
from shotnoise.problem import Problem
from shotnoise.sampling import CyclicEpochs, Online, ReshuffledEpochs, Sampling, WithReplacement

DENSE = 200  # parameters up to which the covariance itself is followed
DENSE_SECOND = 40  # and up to which third derivatives are written out
LEAST_PROBES, PROBES = 8, 32
VARIANCES = ("gradient_variance", "full_gradient_variance")


def propagation(
    problem: Problem | Population,
    w0: ArrayLike | None,
    learning_rate: schedules.LearningRate,
    steps: int,
    batch_sizes: Sequence[int],
    probes: int | None = None,
    *,
    sampling: Sampling | None = None,
    expected_loss: bool = False,
    order: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """The law for large batches of the variance of SGD's gradient along a training from w0, all batch sizes at once.

    problem: any model and data, or a population, sampled online; w0: (p,) flattened in the order of its parameters,
    None for the model's own weights. The module is not changed. SGD without momentum, fresh batches at every step:
    sampling WithReplacement() (default, kappa = 1/b) or WithoutReplacement(). probes: how many deviations estimate what
    the noise does to the weights; None takes the covariance itself up to 200 parameters (exact to first order), and 32
    probes beyond, and for populations. Of a population, the noise at a step is estimated from 1,024 fresh samples; path
    and Hessian are those of its full quantities, in closed form or estimated as it says itself.
    expected_loss: the expected loss too, to first order; three times the cost of the rest with probes, less without.
    order: 2 adds the next order to both variances of the gradient: exactly up to 40 parameters unless probes are
    given, else from as many pairs of trainings in double precision on Gaussian batch weights; see below for the cost.

    Returns, by (batch_size, step), kappa times the leading coefficients, which stand beside them by step with the
    suffix `_leading`: `gradient_variance`, `full_gradient_variance`, `loss_variance` and, where asked for, `loss`: its
    leading coefficient may be negative and comes on top of `gradient_descent_loss` (step). What was estimated has a
    `_stderr`. The gradient's variances stand there by layer too, as `layer_...` (..., layer). With order=2 they are

        kappa _leading + kappa^2 _second + kappa_3 _skewness,

    kappa_3 the factor for third moments of a batch mean (1/b^2 with replacement). Without replacement all terms left
    out are of order 1/b^3 whatever b / n; those left out by order=1 are then of order kappa / n too, not kappa^2.

    `next_order` (batch_size): what the first order leaves out of the gradient's variance at the last step, relative to
    it, with its standard error. With order=2 it is the second order; with order=1 what pairs of trainings show beyond
    it (32 where the covariance is followed and torch.func takes the model, else 6), whose noise has the covariances of
    a batch of that size and opposite signs within a pair: all orders, but for third moments. Infinite where such a
    training diverges. The attribute `valid_from` is the smallest batch size given from which on it is within 10 %, two
    standard errors included, and 0 where there is none.

    Cost per step: a pass for the noise; with probes, as many Hessian-vector products, which share their first passes,
    and for each batch size 12 gradients, and as many times the memory of the weights; without, as many products as
    there are parameters, and 64 gradients side by side. The second order of p weights costs p^2 backward passes and p^4
    operations, or thirteen gradients per probe. Raises InputError for what does not fit, NonFiniteError where the path
    diverges. Source: theory of small noise; exact coefficient of 1/b for any twice differentiable model.

    >>> import torch
    >>> x, y = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    >>> line = torch.nn.Linear(1, 1, bias=False)
    >>> law = propagation(Problem(line, "mse", x, y), [1.0], 0.25, 1, [1, 10], order=2)
    >>> law["gradient_variance_leading"].values.round(4).tolist()  # 8/3 and 11/6
    [2.6667, 1.8333]
    >>> law["gradient_variance_second"].values.round(4).tolist()  # 0 and 1/3
    [0.0, 0.3333]
    """
    population = isinstance(problem, Population)
    inner = problem.problem if isinstance(problem, Population) else problem
    if sampling is None:
        sampling = Online() if population else WithReplacement()
    if population != isinstance(sampling, Online):
        raise InputError(f"{sampling!r}: a population is sampled online, and a data set is not; leave sampling out")
    if isinstance(sampling, (ReshuffledEpochs, CyclicEpochs)):
        raise InputError(
            f"{sampling!r}: the law holds for fresh batches; use WithReplacement() or WithoutReplacement()"
        )
    n = None if population else inner.n
    sampling.check_all(batch_sizes, n)
    rates = schedules.values(learning_rate, steps)
    if probes is not None and probes < LEAST_PROBES:
        raise InputError(f"probes={probes}: at least {LEAST_PROBES}, for a standard error that means something")
    if order not in (1, 2):
        raise InputError(f"order={order}: 1 for the leading term, 2 for the next one too")
    if order == 2 and population:
        raise InputError("order=2 needs a data set: draw one from the population, or take the first order")
    path, p = Path.of(problem, w0), inner.parameter_count
    dense = probes is None and p <= DENSE and not population
    count = PROBES if probes is None else probes
    spread = Covariance.start(inner, expected_loss) if dense else Probes.start(inner, count, seed, expected_loss)
    factors = {
        "leading": np.array([sampling.variance_factor(b, n) for b in batch_sizes]),
        "skewness": np.array([sampling.third_moment_factor(b, n) for b in batch_sizes]),
    }
    factors["second"] = factors["leading"] ** 2
    exact = probes is None and p <= DENSE_SECOND
    beyond: Any
    if order == 1:
        beyond = beside(path, spread, factors["leading"], seed)
    else:
        beyond = SecondOrder.start(inner) if exact else Amplitudes.start(path, count, seed)
    followed: list[Any] = [spread, beyond]
    rows = []
    for t in range(len(rates) + 1):
        rows.append(_look(path, followed, np.random.default_rng([seed, 3, t])))
        if t < len(rates):
            for each in followed:
                each.move(path, float(rates[t]))
            path.move(float(rates[t]))
    found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    variables: dict[str, Any] = {"gradient_descent_loss": ("step", found.pop("gradient_descent_loss"))}
    variables |= _combined(found, factors, variables["gradient_descent_loss"][1])
    if order == 1:
        change, error = beyond.missed(path, float(found["gradient_variance_leading"][-1, -1]), seed)
    else:
        change, error = _ratio(found, factors)
    variables |= {"next_order": ("batch_size", change), "next_order_stderr": ("batch_size", error)}
    sizes, probed = np.asarray(batch_sizes, np.int64), not dense or (order == 2 and not exact)
    attributes = {
        "theory": f"{'first' if order == 1 else 'second'} order in the noise along the gradient-descent path",
        "sampling": str(sampling),
        "n_samples": 0 if n is None else n,
        "parameters": p,
        "l2": inner.l2,
        "probes": count if probed else 0,
        "order": order,
        "seed": seed,
        "valid_from": valid_from(sizes, change, error),
    }
    if probed:
        attributes["draws"] = count  # what standard errors rest on
    coordinates = {
        "batch_size": sizes,
        "kappa": ("batch_size", factors["leading"]),
        "step": np.arange(len(rates) + 1),
        "layer": np.array(list(inner.layers), dtype=str),
    }
    return results.dataset(variables, coordinates, attributes)


def _look(path: Path, followed: Sequence[Any], rng: np.random.Generator) -> Row:
    """Coefficients at this step, by quantity and term: those of gradients by layer, all of them together last."""
    noise, noise_error = path.noise(rng, path.gradient)
    row: Row = {"gradient_descent_loss": np.array(path.problem.loss())}
    for name, value in followed[0].look(path).items():
        quantity = name.removesuffix("_stderr")
        row[name.replace(quantity, f"{quantity}_leading")] = value
    row["gradient_variance_leading"] = noise + row["full_gradient_variance_leading"]
    errors = [e for e in (noise_error, row.get("full_gradient_variance_leading_stderr")) if e is not None]
    if errors:
        row["gradient_variance_leading_stderr"] = np.sqrt(sum(e**2 for e in errors))
    for each in followed[1:]:
        row |= each.look(path)
    return row


def _combined(found: Row, factors: Row, base: Array) -> dict[str, Any]:
    """Every coefficient by step, and by batch size the sum of all terms of each quantity."""
    variables: dict[str, Any] = {}
    for quantity in ("loss", "loss_variance", *VARIANCES):
        terms = {term: found[f"{quantity}_{term}"] for term in factors if f"{quantity}_{term}" in found}
        if not terms:
            continue
        errors = {term: found.get(f"{quantity}_{term}_stderr") for term in terms}
        for term, values in terms.items():
            _put(variables, f"{quantity}_{term}", values, errors[term], ("step",), quantity in VARIANCES)
        total: Any = sum(np.multiply.outer(factors[term], values) for term, values in terms.items())
        squares = [np.multiply.outer(factors[term], e) ** 2 for term, e in errors.items() if e is not None]
        error = np.sqrt(sum(squares)) if squares else None
        if quantity == "loss":
            total = total + base
        _put(variables, quantity, total, error, ("batch_size", "step"), quantity in VARIANCES)
    return variables


def _put(variables: dict[str, Any], name: str, values: Any, error: Any, dims: tuple[str, ...], layered: bool) -> None:
    for suffix, array in (("", values), ("_stderr", error)):
        if array is None:
            continue
        if layered:
            variables[f"{name}{suffix}"] = (dims, array[..., -1])
            variables[f"layer_{name}{suffix}"] = ((*dims, "layer"), array[..., :-1])
        else:
            variables[f"{name}{suffix}"] = (dims, array)


def _ratio(found: Row, factors: Row) -> tuple[Array, Array]:
    """The second order of the gradient's variance over the first at the last step, by batch size, and its error."""
    last = {name: values[-1, -1] for name, values in found.items() if name.startswith("gradient_variance")}
    first = factors["leading"] * last["gradient_variance_leading"]
    change, square = np.zeros_like(first), np.zeros_like(first)
    for term in ("second", "skewness"):
        change += factors[term] * last[f"gradient_variance_{term}"]
        square += (factors[term] * last.get(f"gradient_variance_{term}_stderr", 0.0)) ** 2
    some = first > 0
    return np.divide(change, first, where=some, out=np.zeros_like(first)), np.divide(
        np.sqrt(square), first, where=some, out=np.zeros_like(first)
    )
