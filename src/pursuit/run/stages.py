"""The stages before a selection, each kept in the run folder: tokens, warm-up, features of pool and target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from pursuit.encoding import EncodedPool, encode_pool
from pursuit.encoding.store import MANIFEST
from pursuit.errors import RunError, SelectionError, StoreError
from pursuit.files import fingerprint, read_json, write_record
from pursuit.gradients.embeddings import embed, finished_embeddings
from pursuit.gradients.extract import as_extracted, check_gradients, extract, finished_store
from pursuit.models.loading import find_device
from pursuit.pool import Pool
from pursuit.recipes import Recipe
from pursuit.run.directions import learn_directions, warn_of_unknown
from pursuit.run.folder import RunFolder
from pursuit.run.given import Given
from pursuit.run.parts import joined_features
from pursuit.run.timings import Timings, added_up
from pursuit.run.tokens import Rows, Tokens
from pursuit.selectors import Selector
from pursuit.settings import Settings
from pursuit.store.features import Features, FeatureStore, is_full
from pursuit.store.mirror import Mirror, set_mirror
from pursuit.warmup import warm_up
from pursuit.warmup.trajectory import Trajectory

Fill = Callable[[EncodedPool, Path, Recipe, Mapping[str, Any], str], None]  # rows, folder, …, provenance, description


class Stages:
    """What stands in a run folder, made where it is missing. The folder's lock is the caller's concern.

    Args:
        folder: the run's.
        settings: resolved and settled, see `RunFolder.resolve`.
        fill: how stores are filled; in this process without. What it leaves out is made here.
    """

    def __init__(self, folder: RunFolder, settings: Settings, fill: Fill | None = None) -> None:
        self.folder, self.settings, self._fill_elsewhere = folder, settings, fill
        self.given = Given(folder.path, settings)
        self.tokens = Tokens(folder, settings, self.given)
        self._pool: tuple[list[str], Pool] | None = None  # its files, and the rows
        settings.warmup_recipe(), settings.feature_recipe()  # what cannot be used is found before anything heavy
        if settings.store:
            Mirror(settings.store)

    @property
    def pool(self) -> Pool:
        """The rows of all parts: those that the run began with, and those appended, by another process too."""
        paths = [path for part in self.folder.parts(self.settings.pool) for path in part.paths]
        if self._pool is None or self._pool[0] != paths:
            self._pool = (paths, self.given.pool(paths))
        return self._pool[1]

    def inputs(self) -> list[str]:
        """Files and folders that this run reads and does not write: pool, target, model, adapter."""
        s = self.settings
        files = [source.path for source in self.pool.sources]
        files += [source.path for source in self.given.pool(list(s.target)).sources] if s.target else []
        return [*files, *(str(path) for path in (s.model, s.adapter) if path)]

    def encode(self) -> Rows:
        """Tokens and response masks of every usable row."""
        return self.tokens.encode()

    def warmup(self, *, check: bool = False) -> Trajectory:
        """The finished trajectory, for which no model is needed, or the warm-up on the first part that makes it.

        Args:
            check: read all of a finished one, and make again what is damaged.
        """
        first, manifest = self.tokens.parts()[0], self.folder.warmup / "model.json"
        model = {"model": self.given.model_digest, "data": first.manifest["settings"]}
        if manifest.exists() and read_json(manifest) != model:
            before = read_json(manifest)
            changed = "the pool's files have" if before.get("model") == model["model"] else "the model has"
            raise RunError(
                f"{self.folder.path}: {changed} changed since the warm-up was made. Choose another run folder, or put "
                "back what was there."
            )
        write_record(manifest, model)
        try:
            trajectory = Trajectory(self.folder.warmup)
            if check:
                trajectory.check()
            return trajectory
        except StoreError:
            self.given.forget_model()
            self._refuse_early(first)
            with self.folder.timed("warm-up"):
                return warm_up(self.given.model, first, self.folder.warmup, self.settings.warmup_recipe())

    def _refuse_early(self, rows: EncodedPool) -> None:
        """What could not be done after the warm-up: gradients of this model, or work on devices that are not there."""
        for device in self.settings.devices:
            find_device(device)
        with as_extracted(self.given.model):
            check_gradients(self.given.model, rows)

    def directions(self, trajectory: Trajectory) -> Path | None:
        """File of those that features keep exactly, learnt where it is not there; None where none are asked for."""
        if not self.settings.features.directions:
            return None
        if not (place := self.folder.directions).exists():
            sources = {"pool": self.tokens.parts()[0]}
            if begun_with := self.folder.begun_target():  # not one that a later command names: the file stays the same
                encoded, folder = self._towards(begun_with).encode_target()
                sources[folder.name] = encoded
            with self.folder.timed("directions"):
                learn_directions(place, self.settings, self.given.model, trajectory, sources, self.provenance)
        return place.absolute()

    def _towards(self, target: list[str]) -> Stages:
        if target == self.settings.target:
            return self
        return Stages(self.folder, self.settings.model_copy(update={"target": target}))

    def _directed(self, recipe: Recipe, trajectory: Trajectory) -> Recipe:
        place = self.directions(trajectory)
        return replace(recipe, directions=str(place)) if place else recipe

    def features(self) -> Features:
        """Gradient features of the pool at every checkpoint; also encodes and warms up."""
        rows, trajectory = self.encode(), self.warmup()
        self.directions(trajectory)
        folders = [part.features for part in self.folder.parts(self.settings.pool)]
        with self.folder.timed("features", stood=all(map(is_full, folders))):
            stores = [self.store(number, trajectory) for number in range(len(self.tokens.parts()))]
            parts = [store.features(part.rows) for store, part in zip(stores, self.tokens.parts(), strict=True)]
            return joined_features(parts, rows.rows)

    def embeddings(self) -> Features:
        """Embeddings and losses of the pool from the model as it was given; no warm-up is needed."""
        rows, parts = self.encode(), self.folder.parts(self.settings.pool)
        with self.folder.timed("embeddings", stood=all(is_full(part.embeddings) for part in parts)):
            found = [
                self._embedded(part.embeddings, encoded, "embeddings").features(encoded.rows)
                for part, encoded in zip(parts, self.tokens.parts(), strict=True)
            ]
            return joined_features(found, rows.rows)

    def target_embeddings(self) -> Features:
        """The same of the target's rows."""
        encoded, folder = self.encode_target()
        with self._timed_target(folder, "target embeddings", stood=is_full(folder / "embeddings")):
            return self._embedded(folder / "embeddings", encoded, "target embeddings").features(encoded.rows)

    def _embedded(self, folder: Path, encoded: EncodedPool, describe: str) -> FeatureStore:
        recipe = self.settings.feature_recipe()
        if self.settings.store and self.folder.targets not in folder.parents:
            set_mirror(folder, f"{self.settings.store}/{folder.relative_to(self.folder.path)}")
        provenance = {**self._of_model(), "data": encoded.manifest["settings"]}
        store = finished_embeddings(folder, len(encoded), provenance=provenance, dtype=recipe.dtype)
        return store or embed(
            self.given.base_model, encoded, folder, provenance=provenance, dtype=recipe.dtype,
            batch_tokens=recipe.batch_tokens, shard_rows=recipe.rows_a_shard(len(encoded)), describe=describe,
        )  # fmt: skip

    def store(self, number: int, trajectory: Trajectory) -> FeatureStore:
        """The filled store of one part."""
        part = self.folder.parts(self.settings.pool)[number]
        if self.settings.store:
            set_mirror(part.features, f"{self.settings.store}/{part.name}")
        describe = "gradients" if number == 0 else f"gradients, part {number + 1}"
        recipe = self._directed(self.settings.feature_recipe(), trajectory)
        return self._filled(part.features, self.tokens.parts()[number], trajectory, recipe, describe)

    def target_features(self, follows: bool = False) -> Features:
        """Features of the target's rows, same projection; see `Run.target_features`."""
        encoded, folder = self.encode_target()
        trajectory = self.warmup()
        recipe = self._directed(self.settings.target_recipe(follows), trajectory)
        if recipe.directions:
            warn_of_unknown(Path(recipe.directions), folder.name)
        place = folder / ("features" if recipe.preconditioner == "sgd" else "features-as-pool")
        with self._timed_target(folder, "target", stood=is_full(place)):
            store = self._filled(place, encoded, trajectory, recipe, "target gradients")
            return store.features(encoded.rows)

    def features_for(self, selector: Selector) -> tuple[Features, Features | None]:
        """What a method looks at, of the pool and of the target."""
        wanted = selector.needs_target or (selector.uses_target and self.settings.target)
        if not selector.needs_features:
            return Features.without_gradients(self.encode().rows), None
        if selector.needs_embeddings:
            return self.embeddings(), self.target_embeddings() if wanted else None
        return self.features(), self.target_features(selector.follows_target) if wanted else None

    def encode_target(self) -> tuple[EncodedPool, Path]:
        """The target's tokens, and its folder.

        Raises:
            SelectionError: the run has no target.
        """
        if not self.settings.target:
            raise SelectionError("no target is set (--target FILE).")
        pool, folder = self.given.pool(self.settings.target), self._target_folder()
        with self._timed_target(folder, "target", stood=(folder / "encoded" / MANIFEST).exists()):
            return encode_pool(pool, self.given.encoder, folder / "encoded"), folder

    def _timed_target(self, folder: Path, stage: str, *, stood: bool) -> AbstractContextManager[None]:
        """In the target's own folder: a run may have several, and a selection has the cost of its own."""
        return nullcontext() if stood else Timings(folder).of(stage)

    def timings(self) -> dict[str, float]:
        """Seconds of each stage so far, with those of the target that is set."""
        return {**self.folder.timings(), **(added_up(self._target_folder()) if self.settings.target else {})}

    def _target_folder(self) -> Path:
        pool = self.given.pool(self.settings.target)
        return self.folder.targets / fingerprint([pool.fingerprint(), self.given.encoder.settings()])

    def extract_share(self, number: int, of: int) -> list[Path]:
        """One of several jobs: every `of`-th shard of all parts, counted from 1. For this the rest must stand.

        Returns:
            the store folders.
        """
        self.tokens.opened()
        trajectory = Trajectory(self.folder.warmup)
        if self.settings.features.directions and not self.folder.directions.exists():
            raise StoreError(f"{self.folder.directions}: not learnt yet, or not copied with the rest of the run.")
        first, folders = 0, []
        for index, part in enumerate(self.folder.parts(self.settings.pool)):
            rows, recipe = self.tokens.parts()[index], self._directed(self.settings.feature_recipe(), trajectory)
            if self.settings.store:
                set_mirror(part.features, f"{self.settings.store}/{part.name}")
            count = -(-len(rows) // recipe.rows_a_shard(len(rows)))
            mine = [shard for shard in range(count) if (first + shard) % of == number - 1]
            extract(
                self.given.model, trajectory, rows, part.features, recipe, provenance=self.provenance(rows, trajectory),
                shards=mine, describe=f"shards {number}/{of}",
            )  # fmt: skip
            first += count
            folders.append(part.features)
        return folders

    def _of_model(self) -> dict[str, Any]:
        return {"model": self.given.model_digest, "model_dtype": self.settings.held_as}

    def provenance(self, encoded: EncodedPool, trajectory: Trajectory) -> dict[str, Any]:
        """What features depend on besides their recipe."""
        return {
            **self._of_model(), "data": encoded.manifest["settings"],
            "trajectory": [dict(checkpoint.sha256) for checkpoint in trajectory.checkpoints],
        }  # fmt: skip

    def _filled(
        self, folder: Path, encoded: EncodedPool, trajectory: Trajectory, recipe: Recipe, describe: str
    ) -> FeatureStore:
        provenance = self.provenance(encoded, trajectory)
        store = finished_store(folder, len(encoded), recipe, provenance)
        if store is None and self._fill_elsewhere is not None:
            self.given.forget_model()  # its memory is wanted by those that fill
            self._fill_elsewhere(encoded, folder, recipe, provenance, describe)
            store = finished_store(folder, len(encoded), recipe, provenance)
        return store or extract(
            self.given.model, trajectory, encoded, folder, recipe, provenance=provenance, describe=describe
        )
