"""Data sets, ready for `Problem`: small embedded ones, a synthetic one, and readers for files on disk.

>>> import shotnoise.datasets as datasets
>>> datasets.load("digits")
Data('digits': 1797 samples of shape (1, 8, 8), 10 classes)
>>> datasets.names()
('digits', 'diabetes', 'gauss', 'gauss-2', 'gauss-10', 'mnist', 'cifar10', 'csv')
"""

from shotnoise.datasets.catalogue import load, names
from shotnoise.datasets.data import Data

__all__ = ["Data", "load", "names"]
