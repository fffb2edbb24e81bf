"""A network's polynomial as a labelled result, for tables, figures, pages and files."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from shotnoise import results
from shotnoise.errors import InputError
from shotnoise.predict.networks.polynomial import NetworkPolynomial

QUANTITIES = ("gradient_variance", "full_gradient_variance", "loss", "loss_variance")


def tabulate(
    polynomial: NetworkPolynomial, batch_sizes: Sequence[int], quantity: str = "gradient_variance"
) -> xr.Dataset:
    """The polynomial's coefficients by power of 1/b, and its values at some batch sizes.

    quantity: what it is a polynomial of, gradient_variance, full_gradient_variance, loss or loss_variance, and the
    name of the values. `batch_coefficient` (power), beta_0 .. beta_r as floats (as text, exactly, in the attribute
    `fractions` where the polynomial is exact); the quantity (batch_size); `one_over_b_law` (batch_size), beta_1 / b, to
    which it tends.
    Attributes: degree, degree_bound, printed (what the papers print, by theorem), decreasing_beyond,
    law_holds_from, simulation_agrees_from (see `NetworkPolynomial`), engine. Raises InputError for batch sizes below 1.

    >>> from shotnoise.predict.networks import gradient_variance_polynomial
    >>> p = gradient_variance_polynomial([[[1]], [[1]]], [[4]], "1/24", step=1)
    >>> found = tabulate(p, [2, 16])
    >>> found["gradient_variance"].values.round(5).tolist(), found.attrs["fractions"].split()[1]
    ([9.17015, 1.17788], '1240397/65536')
    """
    if quantity not in QUANTITIES:
        raise InputError(f"quantity={quantity!r}: one of {', '.join(QUANTITIES)}")
    sizes = np.asarray(batch_sizes, np.int64)
    if sizes.ndim != 1 or not sizes.size or sizes.min() < 1:
        raise InputError(f"batch_sizes={batch_sizes!r}: whole numbers from 1 up are needed")
    coefficients = polynomial.coefficients
    values = np.array([float(polynomial(int(b))) for b in sizes])
    leading = float(coefficients[1]) if len(coefficients) > 1 else 0.0
    variables = {
        "batch_coefficient": ("power", coefficients.astype(np.float64)),
        quantity: ("batch_size", values),
        "one_over_b_law": ("batch_size", leading / sizes),
    }
    attributes = {
        "theory": f"{quantity} as a polynomial in 1/b, given the first weights",
        "degree": polynomial.degree,
        "degree_bound": polynomial.degree_bound,
        "printed": "; ".join(f"{name}: {bound}" for name, bound in polynomial.printed_bounds.items()),
        "decreasing_beyond": polynomial.decreasing_beyond,
        "law_holds_from": polynomial.law_holds_from,
        "simulation_agrees_from": polynomial.simulation_agrees_from,
        "engine": polynomial.engine,
        "largest_coefficient_error": float(polynomial.coefficient_errors.max(initial=0.0)),
        "n_samples": 0 if polynomial.n is None else polynomial.n,
    }
    if polynomial.exact:
        attributes["fractions"] = " ".join(str(c) for c in coefficients)
    return results.dataset(variables, {"power": np.arange(len(coefficients)), "batch_size": sizes}, attributes)
