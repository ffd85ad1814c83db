"""Extraction as work for an engine: every worker loads model and trajectory once and makes one shard after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pursuit.encoding import EncodedPool
from pursuit.engine import Engine
from pursuit.gradients.extract import open_store, prepare
from pursuit.gradients.shards import Compute, make_shard
from pursuit.progress import Advance, progress
from pursuit.recipes import Recipe
from pursuit.run.folder import RunFolder
from pursuit.run.stages import Fill, Stages
from pursuit.settings import Settings, settings_from
from pursuit.store.features import FeatureStore
from pursuit.warmup.trajectory import Trajectory


def fill_on(engine: Engine, run: RunFolder, settings: Settings) -> Fill:
    """A function that fills a run's stores on an engine's workers; see `pursuit.run.stages.Stages`.

    Its errors are those of `pursuit.gradients.extract.extract`, and a RunError when the workers do not stay alive.
    """

    there = for_workers(settings.model_dump(mode="json"))

    def fill(encoded: EncodedPool, folder: Path, recipe: Recipe, provenance: Mapping[str, Any], describe: str) -> None:
        weights = [float(weight) for weight in Trajectory(run.warmup).weights()]
        maker = ShardMaker(there, run.path.absolute(), encoded.folder.absolute(), folder.absolute(), recipe)
        dimension = recipe.dimension
        if recipe.projection == "none":  # then the model alone knows
            dimension = next(iter(engine.map(maker.dimension, [0])))
        store = open_store(folder, encoded, weights, recipe, dimension, provenance)
        missing = store.missing()
        total = store.num_checkpoints * store.num_rows
        with progress(describe, total, "rows", done=total - store.rows_left(missing)) as advance:
            for _ in engine.map(maker, missing, advance):
                pass

    return fill


def for_workers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A worker sees one GPU, the one that it was given, whichever the number of that on its machine."""
    device = "cuda" if settings["device"].startswith("cuda") else settings["device"]
    return {**settings, "device": device, "devices": []}


@dataclass
class ShardMaker:
    """Makes shards of a store, called with (checkpoint, shard). Sent to a worker, it loads there what it needs.

    Args:
        settings: of the run, as JSON values.
        run, encoded, store: folders: of the run, of the rows' tokens, and of the features.
    """

    settings: dict[str, Any]
    run: Path
    encoded: Path
    store: Path
    recipe: Recipe

    def __call__(self, unit: tuple[int, int], advance: Advance) -> None:
        """Make one shard and write it."""
        checkpoint, shard = unit
        compute = self._at(checkpoint)
        make_shard(self._store, checkpoint, shard, self._rows, compute, self.recipe.batch_tokens, advance)

    def dimension(self, _: int) -> int:
        """d."""
        return self._prepared[0]

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # what was loaded stays here

    @cached_property
    def _rows(self) -> EncodedPool:
        return EncodedPool(self.encoded)

    @cached_property
    def _store(self) -> FeatureStore:
        return FeatureStore(self.store)

    @cached_property
    def _prepared(self) -> Any:
        folder = RunFolder(self.run)
        model = Stages(folder, settings_from(self.settings)).given.model
        return prepare(model, Trajectory(folder.warmup), self._rows, self.recipe)

    def _at(self, checkpoint: int) -> Compute:
        if self.__dict__.get("_loaded", (-1,))[0] != checkpoint:
            self._loaded = (checkpoint, self._prepared[1](checkpoint))
        return self._loaded[1]
