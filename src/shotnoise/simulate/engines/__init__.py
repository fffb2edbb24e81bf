"""Engines: many copies of one problem side by side, behind one interface (`engine.Engine`)."""

from shotnoise.simulate.engines.choice import ENGINES, choose
from shotnoise.simulate.engines.engine import Engine

__all__ = ["ENGINES", "Engine", "choose"]
