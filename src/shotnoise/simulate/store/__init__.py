"""The store of an ensemble: a Zarr folder with a record of every finished piece, claims, and how to read it."""

from shotnoise.simulate.store.inventory import Inventory, inventory
from shotnoise.simulate.store.read import read
from shotnoise.simulate.store.store import Store

__all__ = ["Inventory", "Store", "inventory", "read"]
