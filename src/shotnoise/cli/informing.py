"""`shotnoise info`."""

from shotnoise.cli.common import OUT
from shotnoise.simulate.engines.installed import installation


def info() -> None:
    """Print versions, the engines of `simulate` that are there, and why one is missing."""
    for line in installation():
        OUT.print(line, highlight=False, markup=False, soft_wrap=True)
