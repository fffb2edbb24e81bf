"""What `measure.curvature` found, in sentences, tables, a figure and a page. Nothing is computed here."""

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from shotnoise.files import check_writable, write_atomically
from shotnoise.show.captions import Caption
from shotnoise.show.grids import Cell, grid
from shotnoise.show.page import picture, provenance_lines, rendered, summary_line
from shotnoise.show.tables import Sheet
from shotnoise.show.words import number, percent, with_stderr

ALIGNED = 0.9  # cosine from which a direction is said to be shared
COLUMNS = {
    "hessian_eigenvalues": "Hessian",
    "second_moment_eigenvalues": "second moment M",
    "residual_eigenvalues": "M - H",
    "principal_angle_cosines": "cosine",
    "subspace_overlap": "overlap of leading",
    "subspace_overlap_chance": "by chance",
    "eigenvector_sines": "sine of single",
    "davis_kahan_bound": "its bound",
    "gradient_share": "gradient's share",
}
CAPTION = Caption(
    "Leading eigenvalues and eigenspaces",
    "Leading eigenvalues of the Hessian and of the second moment of the per-sample gradients; cosines of the principal "
    "angles between their leading eigenspaces; share of the Hessian's eigenvectors in each layer over the layer's "
    "share of the parameters.",
    "Leading eigenvalues, cosines of principal angles and layer loadings, as tabulated.",
)


def curvature_sentences(result: xr.Dataset) -> list[str]:
    """What it says of the last step measured, the most important first."""
    here = _last(result)
    values, moment = here["hessian_eigenvalues"].values, here["second_moment_eigenvalues"].values
    cosines = here["principal_angle_cosines"].values
    q = int(here.attrs.get("subspace_dimensions", np.isfinite(cosines).sum()))
    overlap, chance = (number(float(here[name][q - 1]), 2) for name in ("subspace_overlap", "subspace_overlap_chance"))
    trace = with_stderr(float(here["hessian_trace"]), _error(here, "hessian_trace"))
    found = [
        f"The largest eigenvalue of the Hessian is {number(float(values[0]))}, the smallest "
        f"{number(float(here['hessian_lowest_eigenvalues'][0]))}; its trace {trace}.",
        f"The second moment of the gradients has {number(float(moment[0]))} as its largest; its {len(moment)} largest "
        f"carry {percent(float(min(moment.sum() / float(here['second_moment_trace']), 1.0)))} of its trace.",
        f"{int((cosines >= ALIGNED).sum())} of {q} principal angles between the leading eigenspaces have a cosine of "
        f"at least {ALIGNED:g}; the leading {q} dimensions overlap by {overlap}, random spaces by {chance}.",
    ]
    if "second_moment_ratio" in here:
        ratio = number(float(here["second_moment_ratio"]), 3)
        found.append(f"M and H differ: ||M|| / ||H|| = {ratio} in Frobenius norm; it is 0 where M - H is -H.")
    lost = int((~here["eigenpair_converged"].astype(bool)).sum())
    if lost:
        found.append(
            f"{lost} of {here['eigenpair_converged'].size} eigenpairs have NOT converged; see their residuals."
        )
    statement = str(here.attrs.get("statement", ""))
    if statement:
        found.append(f"{statement[:1].upper()}{statement[1:]}.")
    return found


def curvature_sheet(result: xr.Dataset) -> Sheet:
    """One row per mode, at the last step measured."""
    here = _last(result)
    rows = [
        [f"{k + 1}", *(number(float(here[name][k])) if name in here else "" for name in COLUMNS)]
        for k in range(here.sizes["mode"])
    ]
    where = f" at step {int(result['step'][-1]):,}" if "step" in result.dims else ""
    return Sheet(f"Leading eigenpairs{where}", ["mode", *COLUMNS.values()], rows)


def curvature_steps(result: xr.Dataset) -> Sheet | None:
    """One row per step; None where there are no steps."""
    if "step" not in result.dims:
        return None
    rows = []
    for k, step in enumerate(result["step"].values):
        here = result.isel(step=k)
        cosines = here["principal_angle_cosines"].values
        leading = ("hessian_eigenvalues", "hessian_lowest_eigenvalues", "second_moment_eigenvalues")
        cells = [float(here["loss"]), *(float(here[name][0]) for name in leading)]
        cells += [float(here["second_moment_ratio"]) if "second_moment_ratio" in here else np.nan]
        cells += [float(np.nanmean(cosines))]
        rows.append([f"{int(step):,}", *map(number, cells)])
    columns = ["step", "loss", "largest of H", "smallest of H", "largest of M", "||M|| / ||H||", "mean cosine"]
    return Sheet("Along the training", columns, rows)


def curvature(result: xr.Dataset) -> Figure:
    """Eigenvalues, cosines and loadings by mode, at the last step measured."""
    here = _last(result).assign_coords(mode=np.arange(1, result.sizes["mode"] + 1))
    kinds = {"hessian_eigenvalues": "$H$", "second_moment_eigenvalues": "$M$"}
    both = xr.concat([here[name] for name in kinds], "kind").transpose("kind", "mode")
    cosines = here["principal_angle_cosines"].expand_dims("kind")
    top = [
        Cell(both.where(both > 0), label="eigenvalue", title="$H$ solid, $M$ dashed", scale="log"),
        Cell(cosines, label=r"$\cos\gamma_i$", title="eigenspaces of $H$ and $M$", limits=(0, 1.03)),
    ]
    if here.sizes.get("layer", 0) > 1:
        loads = here["layer_loading"].transpose("layer", "mode")
        first = str(here["layer"].values[0])
        top.append(Cell(loads, label="loading", title=f"layers, {first} solid", limits=(0, None)))
    return grid([top], "mode $i$")


def curvature_report(result: xr.Dataset, path: str | Path, title: str = "Curvature and gradient noise") -> Path:
    """Write the page, whole or not at all, and return the path."""
    check_writable(path)
    sheets = [sheet for sheet in (curvature_steps(result), curvature_sheet(result)) if sheet is not None]
    html = rendered(
        title=title,
        summary=summary_line(result),
        sentences=curvature_sentences(result),
        pictures=[picture("curvature", curvature(result), CAPTION)],
        tables=sheets,
        provenance=provenance_lines(result),
    )
    return write_atomically(path, html)


def _last(result: xr.Dataset) -> xr.Dataset:
    return result.isel(step=-1) if "step" in result.dims else result


def _error(here: xr.Dataset, name: str) -> float | None:
    return float(here[f"{name}_stderr"]) if f"{name}_stderr" in here else None
