"""A stored result in plain sentences that a practitioner can repeat to a colleague.

What "stops paying" means here, and all it means: at a batch of one noise scale the noise is half of the
expected squared length of a step, E||g||^2 = ||grad L||^2 + var(g). No batch, however large, can take away
more than that half, while every sample costs the same. This holds for batches of independent samples and,
since their variance is smaller still, for batches drawn without replacement.
"""

import math

import numpy as np
import xarray as xr

from shotnoise.compare import Agreement
from shotnoise.results import UNRESOLVED
from shotnoise.show import stored
from shotnoise.show.stored import VARIANCE
from shotnoise.show.words import about, listing, number, percent, roughly

FEW_SAMPLES = 0.4  # relative standard error of the noise trace
SMALLEST_SAID = 0.1  # samples: a lower end below that says nothing


def reading(result: xr.Dataset, observed: xr.Dataset | None = None, agreement: Agreement | None = None) -> list[str]:
    """The result in sentences, the most important first.

    Shares and noise scales are those of the last step; a series adds how the noise scale changed. `observed`
    and `agreement` add what redrawing real minibatches says. Raises InputError if this is not a result of
    `measure`.
    """
    stored.check(result, observed)
    here = stored.slices(result)[-1][1]
    verdict = _verdict(observed, agreement)
    wrong = agreement is not None and not agreement.agrees  # then this is the first thing to know
    return [
        *(verdict if wrong else []),
        *_share(here),
        *_full_batch(here),
        *_scale(here),
        *_series(result),
        *_layers(here),
        *([] if wrong else verdict),
        *_precision(result),
    ]


def _share(here: xr.Dataset) -> list[str]:
    """Noise against signal at the middle batch size, then at the smallest and the largest."""
    sizes, shares = stored.batch_sizes(here), stored.values(here, "noise_share")
    if stored.value(here, "noise_trace") == 0:
        return [f"There is no gradient noise{_at_step(here)}: every sample has the same gradient."]
    if stored.value(here, "gradient_norm_sq") == 0:
        return [f"The full gradient is exactly zero{_at_step(here)}: whatever a minibatch step does is noise."]
    noisy = [(b, share) for b, share in sorted(zip(sizes, shares, strict=True)) if 0 < share <= 1]
    if stored.status(here) == UNRESOLVED or not noisy:
        return []
    b, share = noisy[len(noisy) // 2]
    at = f"At step {int(here['step']):,} and" if "step" in here.coords else "At"
    sentence = f"{at} batch size {b:,} {roughly(share)} of a gradient step is noise"
    ends = {size: roughly(end) for size, end in (noisy[0], noisy[-1])}
    others = [f"{end} at batch size {size:,}" for size, end in ends.items() if end != roughly(share)]
    more = f"; it is {listing(others)}" if others else ""
    return [f"{sentence}, as a share of the expected squared length of the step{more}."]


def _full_batch(here: xr.Dataset) -> list[str]:
    sizes, variance = stored.batch_sizes(here), stored.values(here, VARIANCE)
    silent = [f"{b:,}" for b, v in zip(sizes, variance, strict=True) if v == 0]
    if not silent or stored.value(here, "noise_trace") == 0:
        return []
    return [f"At batch size {listing(silent)} there is no noise at all: the batch is the whole data set."]


def _scale(here: xr.Dataset) -> list[str]:
    scale, status = stored.value(here, "noise_scale"), stored.status(here)
    if status == UNRESOLVED:
        return _unresolved(here)
    if not math.isfinite(scale) or scale <= 0:
        return []
    samples, at = stored.count(here, "n_samples"), _at_step(here)
    size = f"about {about(scale)} samples{_interval(here)}"
    if scale < 1:
        sentence = f"The noise scale{at} is {size}: even a single sample carries more signal than noise."
    elif samples is not None and scale > samples:
        sentence = (
            f"The noise scale{at} is {size}, more than the {samples:,} in the data set: a batch of "
            "independent samples would have to be that large before noise makes up only half of the "
            "expected squared length of a step."
        )
    else:
        sentence = (
            f"Beyond {size} a larger batch stops paying{at}: noise then makes up no more than half of the "
            "expected squared length of a step, so that no batch, however large, can shorten it by more "
            "than half."
        )
    return [sentence, *_crossing(here)]


def _crossing(here: xr.Dataset) -> list[str]:
    """Which of the batch sizes asked for are mostly noise, with the sampling that they were asked for."""
    pairs = sorted(zip(stored.batch_sizes(here), stored.values(here, "noise_share"), strict=True))
    at = _at_step(here)
    loud = [b for b, share in pairs if share > 0.5]
    calm = [b for b, share in pairs if share <= 0.5]
    if len(pairs) < 2:
        return []
    if not calm:
        return [f"Noise outweighs signal{at} at every batch size measured."]
    if not loud:
        return [f"Signal outweighs noise{at} at every batch size measured."]
    return [f"Of the batch sizes measured, noise outweighs signal up to {max(loud):,} and not from {min(calm):,} on."]


def _unresolved(here: xr.Dataset) -> list[str]:
    low, used = stored.value(here, "noise_scale_low"), stored.count(here, "samples_used")
    budget = f" of {used:,} samples" if used else ""
    sentence = f"The noise scale{_at_step(here)} is not resolvable with this budget{budget}"
    if math.isfinite(low) and low >= SMALLEST_SAID:
        sentence += f": at {percent(stored.confidence(here))} confidence it is larger than about {about(low)} samples"
    needed = stored.value(here, "noise_scale_samples_needed")
    if used is None or not math.isfinite(needed) or needed <= used:
        return [f"{sentence}."]
    times = about(needed / used)
    return [f"{sentence}. To resolve it needs about {times} times as many, {about(needed)} in all."]


def _series(result: xr.Dataset) -> list[str]:
    """How the noise scale changed from the first step to the last, as far as the intervals allow to say."""
    parts = stored.slices(result)
    if len(parts) < 2:
        return []
    (first, start), (last, end) = parts[0], parts[-1]
    span = f"From step {first:,} to step {last:,}"
    scales = [stored.value(here, "noise_scale") for here in (start, end)]
    known = all(stored.status(here) != UNRESOLVED for here in (start, end))
    if not known or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        return [f"{span} the change of the noise scale cannot be told: it is not known at both ends."]
    ends = f"from about {about(scales[0])} to about {about(scales[1])} samples"
    if _overlap(start, end) and stored.status(end) != "exact":
        return [f"{span} the noise scale went {ends}, but the two intervals overlap: no change is established."]
    ratio = scales[1] / scales[0]
    if 0.9 < ratio < 1 / 0.9:
        return [f"{span} the noise scale hardly changed: {ends}."]
    verb, fold = ("grew", ratio) if ratio > 1 else ("shrank", 1 / ratio)
    return [f"{span} the noise scale {verb} {ends}, {about(fold)}-fold."]


def _layers(here: xr.Dataset) -> list[str]:
    if "layer_noise_scale" not in here or here.sizes["layer"] < 2:
        return []
    names = [str(name) for name in here["layer"].values]
    scales = stored.values(here, "layer_noise_scale")
    ranked = [k for k in np.argsort(scales) if math.isfinite(scales[k]) and scales[k] > 0]
    sentences = []
    if len(ranked) > 1 and stored.status(here) != UNRESOLVED:
        cleanest, noisiest = ranked[0], ranked[-1]
        sentences.append(
            f"Measured by its own noise scale, the noisiest layer is {names[noisiest]!r} (about "
            f"{about(scales[noisiest])} samples) and the cleanest {names[cleanest]!r} (about "
            f"{about(scales[cleanest])})."
        )
    if dead := [repr(names[k]) for k in np.flatnonzero(np.isposinf(scales))]:
        have = f"Layer {dead[0]} has" if len(dead) == 1 else f"Layers {listing(dead)} have"
        sentences.append(f"{have} a full gradient of zero: pure noise.")
    traces, total = stored.values(here, "layer_noise_trace"), stored.value(here, "noise_trace")
    if total > 0 and np.isfinite(traces).all():
        loudest = int(np.argmax(traces))
        part = roughly(min(traces[loudest] / total, 1))
        sentences.append(f"Layer {names[loudest]!r} holds the largest part of all the noise, {part}.")
    return sentences


def _verdict(observed: xr.Dataset | None, agreement: Agreement | None) -> list[str]:
    if agreement is not None:
        drawn, found = "Real minibatches drawn at the same weights", agreement.detail
        if agreement.agrees:
            return [f"{drawn} agree with the measurement ({found})."]
        doubt = "do not rely on the numbers below before this is explained"
        return [f"{drawn} contradict the measurement, so {doubt} ({found})."]
    if observed is not None:
        return ["Real minibatches were drawn at the same weights; no test of agreement was asked for."]
    return []


def _precision(result: xr.Dataset) -> list[str]:
    samples, used = stored.count(result, "n_samples"), stored.count(result, "samples_used")
    statuses = {stored.status(here) for _, here in stored.slices(result)}
    if statuses == {"exact"}:
        count = f"all {samples:,} samples were used" if samples else "all samples were used"
        return [f"These numbers are exact for this data set and these weights: {count}."]
    population = f" of {samples:,}" if samples else ""
    source = f" from {used:,}{population} samples" if used else ""
    return [
        f"These numbers are estimates{source}; intervals hold with {percent(stored.confidence(result))} confidence.",
        *_few_samples(result),
    ]


def _few_samples(result: xr.Dataset) -> list[str]:
    """A warning where the noise hangs on so few samples that a budget cannot know how many more there are."""
    errors = {
        step: stored.value(here, "noise_trace_stderr") / stored.value(here, "noise_trace")
        for step, here in stored.slices(result)
        if stored.value(here, "noise_trace") > 0 and stored.value(here, "noise_trace_stderr") > 0
    }
    step = max(errors, key=lambda k: errors[k], default=None)
    if step not in errors or errors[step] < FEW_SAMPLES:
        return []
    at = "" if step is None else f" at step {step:,}"
    return [
        f"A few samples carry the noise{at}, which is known to {percent(errors[step])} only: others that were not "
        "drawn may carry more, and intervals may hold less often than they say. Use more samples."
    ]


def _overlap(a: xr.Dataset, b: xr.Dataset) -> bool:
    low = max(stored.value(here, "noise_scale_low") for here in (a, b))
    return bool(low <= min(stored.value(here, "noise_scale_high") for here in (a, b)))


def _interval(here: xr.Dataset) -> str:
    if stored.status(here) == "exact":
        return ""
    low, high = stored.value(here, "noise_scale_low"), stored.value(here, "noise_scale_high")
    sure = f"{percent(stored.confidence(here))} interval"
    if math.isinf(high):
        return f" ({sure} from {about(low)} upwards, without an upper end)"
    return f" ({sure} {number(low, 2)} to {number(high, 2)})"


def _at_step(here: xr.Dataset) -> str:
    return f" at step {int(here['step']):,}" if "step" in here.coords else ""
