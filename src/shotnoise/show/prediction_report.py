"""A prediction for linear regression in sentences, a table and a page."""

from pathlib import Path

import numpy as np
import xarray as xr

from shotnoise.compare import Agreement
from shotnoise.files import check_writable, write_atomically
from shotnoise.show.captions import Caption
from shotnoise.show.page import Picture, picture, provenance_lines, rendered, summary_line
from shotnoise.show.predictions import against_batch_size, prediction
from shotnoise.show.tables import Sheet
from shotnoise.show.words import about, listing, number, percent

NAMES = {
    "gradient_variance": "the variance of the minibatch gradient",
    "full_gradient_variance": "the variance of the full gradient",
    "loss": "the expected loss",
    "gradient_norm_sq": "the expected squared gradient norm",
    "weights_variance": "the variance of the weights",
    "loss_variance": "the variance of the loss",
}
LAW = "kappa(b) times a constant"
STEPS_SHOWN = 4


def prediction_sentences(predicted: xr.Dataset, advice: xr.Dataset | None = None) -> list[str]:
    """What the prediction says, the most important first; advice: its `predict.batch_size_report`."""
    last, sizes = predicted.isel(step=-1), predicted["batch_size"].values
    t = int(last["step"])
    found = []
    if "overflow_step" in predicted:
        lost = [
            f"b = {int(b):,} from step {int(predicted['overflow_step'].sel(batch_size=b)):,} on"
            for b in sizes if int(predicted["overflow_step"].sel(batch_size=b)) >= 0
        ]  # fmt: skip
        found.append(f"The moments grow beyond all numbers at {listing(lost)}: the learning rate is too large there.")
    kept = [int(b) for b in sizes if np.isfinite(last["gradient_variance"].sel(batch_size=b))]
    if kept:
        ends = [
            f"{number(float(last['gradient_variance'].sel(batch_size=b)), 3)} at batch size {b:,}"
            for b in sorted({kept[0], kept[-1]})
        ]
        found.append(f"After {t:,} steps the minibatch gradient has variance {listing(ends)}, given the first weights.")
    if advice is None:
        return found
    rising = [str(q) for q in advice["quantity"].values if not bool(advice["is_decreasing"].sel(quantity=q))]
    if rising:
        worst = [
            f"{NAMES[q]} (by up to {percent(float(advice['largest_increase'].sel(quantity=q)))} from one batch size to "
            "the next)" for q in rising
        ]  # fmt: skip
        found.append(f"A larger batch can make it larger: {listing(worst)}.")
    else:
        found.append("A larger batch makes none of these larger, at any step, over the batch sizes given.")
    ratio = advice["doubling_ratio"].sel(quantity="gradient_variance").isel(step=-1)
    doubled = [int(b) for b in ratio["batch_size"].values if np.isfinite(ratio.sel(batch_size=b))]
    if doubled:
        words = [
            f"{about(float(ratio.sel(batch_size=b)))} from {b:,} to {2 * b:,}"
            for b in sorted({doubled[0], doubled[-1]})
        ]
        found.append(f"At the last step doubling the batch multiplies the gradient variance by {listing(words)}.")
    if "law_holds_from" in advice:
        found.append(_law(advice))
    return found


def _law(advice: xr.Dataset) -> str:
    within = percent(float(advice.attrs["tolerance"]))
    holds = advice["law_holds_from"].values
    if np.isnan(holds).any():
        first = int(advice["step"].values[np.isnan(holds).argmax()])
        return (
            f"From step {first:,} on no batch size given is within {within} of the law for large batches, kappa "
            "times a constant."
        )
    if holds.max() == advice["batch_size"].values[0]:
        return f"At every step and batch size the variance is within {within} of the law for large batches, {LAW}."
    return (
        f"From batch size {int(holds.max()):,} on the variance is, at every step, within {within} of the law for large "
        f"batches, {LAW}."
    )


def prediction_sheet(
    predicted: xr.Dataset, advice: xr.Dataset | None = None, limits: xr.Dataset | None = None
) -> Sheet:
    """One row per batch size: the last step, M and M_V, and the critical learning rate of `regression_stability`."""
    last = predicted.isel(step=-1)
    shown = [name for name in ("gradient_variance", "full_gradient_variance", "loss", "loss_variance") if name in last]
    columns = ["batch size", *(name.replace("_", " ") for name in shown)]
    noted = [name for name in ("noise_floor", "noise_slope") if advice is not None and name in advice]
    columns += [{"noise_floor": "M", "noise_slope": "M_V"}[name] for name in noted]
    columns += ["critical rate"] * (limits is not None)
    rows = []
    for b in predicted["batch_size"].values:
        cells = [f"{int(b):,}"] + [number(float(last[name].sel(batch_size=b))) for name in shown]
        cells += [number(float(advice[name].sel(batch_size=b)), 3) for name in noted if advice is not None]
        cells += [] if limits is None else [number(float(limits["critical_learning_rate"].sel(batch_size=b)))]
        rows.append(cells)
    return Sheet(f"Step {int(last['step']):,}, exact", columns, rows)


def prediction_report(
    predicted: xr.Dataset,
    path: str | Path,
    advice: xr.Dataset | None = None,
    limits: xr.Dataset | None = None,
    simulated: xr.Dataset | None = None,
    agreement: Agreement | None = None,
    title: str = "What SGD will do on this regression",
) -> Path:
    """Write a page about what `predict.regression` returned, whole or not at all, and return the path."""
    check_writable(path)
    html = rendered(
        title=title,
        summary=summary_line(predicted),
        sentences=prediction_sentences(predicted, advice),
        pictures=prediction_pictures(predicted, simulated),
        tables=[prediction_sheet(predicted, advice, limits)],
        agreement=agreement,
        compared=("predicted", "simulated"),
        provenance=provenance_lines(predicted),
    )
    return write_atomically(path, html)


def prediction_pictures(predicted: xr.Dataset, simulated: xr.Dataset | None = None) -> list[Picture]:
    """Along the steps, and against the batch size where there are several."""
    count, steps = predicted.sizes["batch_size"], predicted["step"].values
    over = " Marks: simulated, with 95 % intervals." if simulated is not None else ""
    found = [
        picture(
            "along_the_steps",
            prediction(predicted, simulated),
            Caption(
                "Variance along the training",
                "Variance, given the first weights, of the minibatch gradient drawn at each step and of the full "
                "gradient "
                f"there; lines: exact.{over}",
                f"Variance of the minibatch and of the full gradient against the step, for {count} batch sizes, as "
                "tabulated.",
            ),
        )
    ]
    if count > 1:
        chosen = np.unique(np.geomspace(1, len(steps), STEPS_SHOWN).round().astype(int)) - 1
        found.append(
            picture(
                "against_the_batch_size",
                against_batch_size(predicted.isel(step=chosen)),
                Caption(
                    "What a larger batch buys",
                    "The same variance against the batch size at a few steps. A straight line of slope -1 is the "
                    "1/b law.",
                    f"Variance of the minibatch gradient against the batch size at {len(chosen)} steps.",
                ),
            )
        )
    return found
