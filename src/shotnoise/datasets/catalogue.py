"""The table of data sets, and `load`, which looks a name up in it."""

import inspect
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from shotnoise.datasets.cifar10 import load_cifar10
from shotnoise.datasets.csv_table import load_csv
from shotnoise.datasets.data import Data
from shotnoise.datasets.diabetes import load_diabetes
from shotnoise.datasets.digits import load_digits
from shotnoise.datasets.gauss import make_gauss
from shotnoise.datasets.mnist import load_mnist
from shotnoise.errors import InputError

# A new data set is one line here. A loader that has the parameter `data_dir` reads files from that folder.
_LOADERS: dict[str, Callable[..., Data]] = {
    "digits": load_digits,
    "diabetes": load_diabetes,
    "gauss": make_gauss,
    "gauss-2": partial(make_gauss, 2),
    "gauss-10": partial(make_gauss, 10),
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "csv": load_csv,
}


def names() -> tuple[str, ...]:
    """Names that `load` knows, in the order in which they should be listed."""
    return tuple(_LOADERS)


def load(name: str, data_dir: str | os.PathLike[str] | None = None, **options: Any) -> Data:
    """A data set by name.

    name       one of `names()`
    data_dir   folder with the files of mnist, cifar10 or csv; None takes the environment variable
               SHOTNOISE_DATA. Embedded and synthetic sets need no folder and ignore it.
    options    those of the set: k, n, dimension, random_labels, scale, seed (gauss; all but k also for
               gauss-2 and gauss-10), path, target, drop, standardise (csv), verify (mnist, cifar10).
    Raises InputError for an unknown name or option, DataError for missing, damaged or altered files.

    >>> load("gauss-10", random_labels=0.15, seed=3).inputs.shape
    torch.Size([100, 50])
    """
    if name not in _LOADERS:
        raise InputError(f"There is no data set {name!r}; the names are {', '.join(names())}.")
    loader = _LOADERS[name]
    parameters = dict(inspect.signature(loader).parameters)
    folder = {"data_dir": data_dir} if parameters.pop("data_dir", None) else {}
    _check_options(name, options, parameters)
    return loader(**folder, **options)


def _check_options(name: str, options: dict[str, Any], parameters: dict[str, inspect.Parameter]) -> None:
    known = ", ".join(parameters) or "none"
    unknown = [option for option in options if option not in parameters]
    if unknown:
        raise InputError(f"Data set {name!r} has no option {', '.join(unknown)}; its options: {known}.")
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if needed:
        raise InputError(f"Data set {name!r} needs the option {', '.join(needed)}; its options: {known}.")
