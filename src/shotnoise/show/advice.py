"""Advice as a table."""

import numpy as np
import xarray as xr

from shotnoise.show.tables import Sheet
from shotnoise.show.words import number


def advice_sheet(found: xr.Dataset) -> Sheet:
    """One row per line of `shotnoise.advise`: the number, its interval, how sure it is."""
    rows = []
    for k, name in enumerate(found["advice"].values):
        value, low, high = (float(found[f"advice_{part}"][k]) for part in ("value", "low", "high"))
        interval = "" if np.isnan(low) or low == high else f"{number(low, 3)} to {number(high, 3)}"
        rows.append([str(name), number(value), interval, str(found["certainty"].values[k]).split(":")[0]])
    return Sheet("Advice", ["about", "value", "interval", "certainty"], rows)
