"""A plan together with what does not change its results: where they go, which part of it to compute, and on what."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import xarray as xr

from shotnoise.simulate.plan import Plan
from shotnoise.simulate.store.files import plain
from shotnoise.simulate.store.manifest import Manifest, read_manifest, refuse_differences
from shotnoise.simulate.store.records import Records
from shotnoise.simulate.verb import Progress, execute


@dataclass(frozen=True)
class Job:
    """`shard`, `workers` and `scheduler` as in `shotnoise.simulate`."""

    plan: Plan
    store: Path
    shard: tuple[int, int] | None = None
    workers: int | None = None
    scheduler: str | None = None

    @cached_property
    def pieces(self) -> list[int]:
        """The numbers of the pieces that this job is about."""
        index, count = self.shard or (1, 1)
        return self.plan.layout.shard(index - 1, count)

    def finished(self) -> set[int]:
        """Those of all pieces that the store has already; the store is not changed, nor created.

        Raises InputError for the store of another plan, DataError for something that is no store.
        """
        if not self.store.exists():
            return set()
        asked = Manifest(plain(self.plan.configuration(), "the configuration"), self.plan.layout, [], "")
        refuse_differences(self.store, read_manifest(self.store), asked)
        return Records(self.store, self.plan.layout).finished()

    def run(self, progress: Progress | None = None) -> xr.Dataset:
        """Compute what is missing; the result has what the store then has."""
        return execute(
            self.plan,
            store=self.store,
            shard=self.shard,
            workers=self.workers,
            scheduler=self.scheduler,
            progress=progress,
        )
