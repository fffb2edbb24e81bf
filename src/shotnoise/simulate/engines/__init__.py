"""Engines: many copies of one problem side by side, behind one interface (`engine.Engine`)."""

from shotnoise.simulate.engines.choice import CHOICES, ENGINES, choose
from shotnoise.simulate.engines.engine import Engine

__all__ = ["CHOICES", "ENGINES", "Engine", "choose"]
