"""The variance of a network's stochastic gradient after t steps, given only the initial weights: a polynomial in 1/b.

By the law of total variance, with Sigma(w) the covariance of one sample's gradient, u = 1/b and fresh batches,

    var(g_t) = u E tr Sigma(w_t) + var(grad L(w_t)).

The second term, which the variance paper's proof of Theorem 4 leaves out, is of the same order from t = 1 on.
"""

from collections.abc import Sequence
from typing import Any

from shotnoise.predict.networks.engines import SECONDS, Progress, answered, cheapest
from shotnoise.predict.networks.forms import FULL_GRADIENT, GRADIENT, LOSS, LOSS_VARIANCE
from shotnoise.predict.networks.inputs import Moments, Points
from shotnoise.predict.networks.model import layer_index, network
from shotnoise.predict.networks.polynomial import NetworkPolynomial


def gradient_variance_polynomial(
    student: Sequence[Any],
    teacher: Any,
    learning_rate: Any,
    step: int,
    layer: int = 0,
    *,
    activation: Sequence[Any] | None = None,
    inputs: str | Points | Moments = "gaussian",
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> NetworkPolynomial:
    """var(g_t) = E ||g_t||^2 - ||E g_t||^2 of one layer's batch gradient at step t, by batch size.

    student: weight matrices (outputs, inputs), first layer first, at step 0. teacher: likewise, or for a linear teacher
    one product matrix; labels are its outputs, without noise. activation: c_0, c_1, ... of a polynomial that acts on
    the hidden layers of both; None for linear networks. The loss is E 1/2 ||f(x) - y||^2.
    learning_rate: a number, one number per update, or a function of t. layer: 0 is the first.
    inputs: "gaussian", fresh x ~ N(0, I) in every batch; `Points`, finitely many values; or `Moments`, any distribution
    of which the joint moments are known, so far as they are needed (the message says how far).
    seconds: refuse what is predicted to take longer. progress: called now and then with what is done and of how much,
    about. Ctrl-C raises `Interrupted`, a KeyboardInterrupt whose `partial` holds the polynomials of earlier steps.

    Ints, Fractions and strings such as "1/3" give exact Fractions, floats give floats with bounds on their errors
    (`coefficient_errors`, `error`). The result is a polynomial in
    1/b, at most of degree sum_{s=0}^t (2 (2 q - 1)^s - 1), q the degree of the outputs in the weights; without a
    constant term, except without replacement. What is in reach is few inputs and few steps: linear networks of two
    layers at step 1 at any width, at step 2 with two inputs, at step 4 with one; with polynomial activations step 1
    with two or three inputs. Beyond, `sn.predict.propagation` gives the term in 1/b of any network.

    Raises InputError for shapes that do not chain, numbers that are not finite, moments that are missing, results
    beyond the range of floats, and what would take too long.
    Source: variance paper sec. 3.2 (Theorem 4, corrected), its successor sec. 3.1.

    >>> p = gradient_variance_polynomial([[[1]], [[1]]], [[4]], "1/24", step=1)
    >>> p.degree, p.degree_bound, p.printed_bounds["Theorem 4"]
    (6, 6, 18)
    >>> round(float(p(2)), 5), p.decreasing_beyond, p.simulation_agrees_from
    (9.17015, 1.0, 2.0)
    """
    own = network(student, teacher, learning_rate, step, activation)
    return answered(own, inputs, GRADIENT, layer_index(own, layer), seconds, progress)


def full_gradient_variance_polynomial(
    student: Sequence[Any],
    teacher: Any,
    learning_rate: Any,
    step: int,
    layer: int = 0,
    *,
    activation: Sequence[Any] | None = None,
    inputs: str | Points | Moments = "gaussian",
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> NetworkPolynomial:
    """var(grad L(w_t)): how far the full gradient at step t differs between runs. Arguments as for the batch gradient.

    >>> p = full_gradient_variance_polynomial([[[1]], [[1]]], [[4]], "1/24", step=1)
    >>> p.coefficients[:2].tolist(), p.degree
    ([Fraction(0, 1), Fraction(169, 131072)], 5)
    """
    own = network(student, teacher, learning_rate, step, activation)
    return answered(own, inputs, FULL_GRADIENT, layer_index(own, layer), seconds, progress)


def loss_polynomial(
    student: Sequence[Any],
    teacher: Any,
    learning_rate: Any,
    step: int,
    *,
    activation: Sequence[Any] | None = None,
    inputs: str | Points | Moments = "gaussian",
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> NetworkPolynomial:
    """E L(w_t), the expected loss at step t, with the loss of plain gradient descent as its constant term.

    Unlike in linear regression it may rise with the batch size, even for large batches. Arguments as above.

    >>> loss_polynomial([[[1]], [[1]]], [[4]], "1/24", step=1).coefficients[1]
    Fraction(-13, 2048)
    """
    own = network(student, teacher, learning_rate, step, activation)
    return answered(own, inputs, LOSS, 0, seconds, progress)


def loss_variance_polynomial(
    student: Sequence[Any],
    teacher: Any,
    learning_rate: Any,
    step: int,
    *,
    activation: Sequence[Any] | None = None,
    inputs: str | Points | Moments = "gaussian",
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> NetworkPolynomial:
    """var(L(w_t)), the variance between runs of the population's loss at step t. Arguments as above.

    >>> loss_variance_polynomial([[[1]], [[1]]], [[4]], "1/24", step=1).coefficients[1]
    Fraction(2480625, 2097152)
    """
    own = network(student, teacher, learning_rate, step, activation)
    return answered(own, inputs, LOSS_VARIANCE, 0, seconds, progress)


def predicted_seconds(
    student: Sequence[Any],
    teacher: Any,
    learning_rate: Any,
    step: int,
    layer: int = 0,
    *,
    activation: Sequence[Any] | None = None,
    inputs: str | Points | Moments = "gaussian",
) -> float:
    """How long `gradient_variance_polynomial` would take on one core, within a small factor; 1e300 beyond memory.

    >>> predicted_seconds([[[1]], [[1]]], [[4]], "1/24", step=2) < 1 < predicted_seconds([[[1]], [[1]]], [[4]], 0.1, 5)
    True
    """
    own = network(student, teacher, learning_rate, step, activation)
    return cheapest(own, inputs, GRADIENT, layer_index(own, layer)).seconds
