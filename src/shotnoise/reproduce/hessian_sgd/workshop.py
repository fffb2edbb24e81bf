"""The ensembles behind the figures: each is made once, kept in a store, and serves every figure that needs it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from shotnoise import simulate
from shotnoise.reproduce.hessian_sgd.settings import PRESETS, Preset, Setting
from shotnoise.rules import SGD

LEADING = {10: 15, 2: 5}  # eigenpairs, by the number of classes
PILOT = 4  # runs, by which the duration is predicted
EARLY = 100  # steps of the first iterations
BLOCK = 50  # runs of a piece where each run is costly: what an interruption may lose
PATH = ["loss", "gradient_norm", "gradient_norm_sq", "minibatch_gradient_norm", "gradient_cosine"]


@dataclass(frozen=True)
class Workshop:
    """Where runs are kept, how many, and how they are computed.

    runs: instead of the preset's numbers. say: told what a long preset is going to take before it starts.
    """

    folder: Path
    preset: str
    seed: int = 0
    runs: int | None = None
    workers: int | None = None
    progress: Callable[[Any], None] | None = None
    say: Callable[[str], None] | None = None
    data_dir: Path | None = None

    @property
    def size(self) -> Preset:
        return PRESETS[self.preset]

    def path(self, setting: Setting) -> xr.Dataset:
        """Loss, gradient norms and angles all along, and redrawn updates at some steps."""
        record = [*PATH, simulate.loss_change(self.size.redraws, steps=setting.redrawn)]
        return self._made(setting, "path", self.size.path, record, setting.every)

    def early(self, setting: Setting) -> xr.Dataset:
        """The first iterations of the same runs."""
        return self._made(setting, "early", self.size.path, PATH, 1, min(EARLY, setting.steps))

    def curvature(self, setting: Setting) -> xr.Dataset:
        """Leading eigenpairs of H, M and H_p, how their spaces lie to each other, and loadings."""
        return self._looked(setting, "curvature", self.size.curvature)

    def layers(self, setting: Setting) -> xr.Dataset:
        """The same with the blocks of H by layer and the sub-networks."""
        return self._looked(setting, "layers", self.size.layers, layers=True)

    def spectra(self, setting: Setting) -> xr.Dataset:
        """All eigenvalues at the first, an intermediate and the last step."""
        looks = tuple(setting.looks[k] for k in (0, len(setting.looks) // 2, -1))
        return self._looked(setting, "spectra", self.size.spectra, looks, full=True)

    def _looked(
        self, setting: Setting, name: str, runs: int, looks: tuple[int, ...] | None = None, **options: bool
    ) -> xr.Dataset:
        steps = setting.looks if looks is None else looks
        pairs = simulate.curvature(LEADING[setting.classes], steps=steps, **options)
        return self._made(setting, name, runs, ["loss", "gradient_norm_sq", "gradient_cosine", *pairs], setting.every)

    def _made(
        self, setting: Setting, name: str, runs: int, record: list[Any], every: int, steps: int | None = None
    ) -> xr.Dataset:
        recipe, count = self.size.recipe, runs if self.runs is None else self.runs
        options: dict[str, Any] = {
            "initial": setting.initial(recipe), "seed": self.seed, "record": record, "every": every, "raw": True,
        }  # fmt: skip
        problem, rule = setting.problem(recipe, self.seed), SGD(setting.learning_rate)
        steps = setting.steps if steps is None else steps
        store = self.folder / f"{setting.name}_{name}_{self.preset}{'' if self.runs is None else self.runs}.zarr"
        if self.say is not None and self.preset == "paper" and not store.exists():
            start = time.process_time()
            simulate(problem, rule, setting.batch_size, steps, min(PILOT, count), **options, workers=1)
            hours = (time.process_time() - start) / min(PILOT, count) * count / 3600
            self.say(f"{setting.title}, {name}: {count:,} runs will take about {hours:.2g} hours of one core")
        found = simulate(
            problem, rule, setting.batch_size, steps, count, **options, store=store, workers=self.workers,
            progress=self.progress, block=None if name in ("path", "early") else min(BLOCK, count),
        )  # fmt: skip
        return found.isel(batch_size=0, drop=True).load()
