"""A run: pool and model in, features on disk, as many selections from them as one likes.

    run = Run("runs/x", model="SmolLM2-135M", pool=["a.jsonl"])
    selection = run.select(Tagcos(clusters=100), budget=0.05, out="subset.jsonl")

Every stage is skipped when its result already stands in the folder, and goes on where it was killed.
"""

from __future__ import annotations

import glob
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from pursuit.encoding import EncodedPool, Encoder, duplicate_groups, encode_pool, render_tokens
from pursuit.errors import RunError, SelectionError, SettingsError, StoreError
from pursuit.export import Result, publish
from pursuit.features import Features, FeatureStore
from pursuit.files import fingerprint, read_json, write_json
from pursuit.gradients.extract import extract, finished_store
from pursuit.models import load_model, load_tokenizer, model_fingerprint, settled_dtype
from pursuit.pool import Pool, check_subset_path
from pursuit.recipes import Recipe
from pursuit.run_folder import RunFolder
from pursuit.selectors import Selection, Selector, check_budget, method, parse_budget
from pursuit.settings import Settings
from pursuit.trainable import prepare_trainable
from pursuit.warmup import warm_up
from pursuit.warmup.plan import Plan
from pursuit.warmup.trajectory import Trajectory


class Run:
    """One run folder.

    Args:
        folder: where everything is kept; one process at a time works in it.
        settings: see `pursuit.settings.Settings`; for an existing run only what may change (target, device, …), or
            nothing.

    Raises:
        RunError: settings differ from those that the folder's results were made with.
        SettingsError: an unknown key or a value that cannot be accepted.
        DataError: a pool file is missing.
        ModelError: the model is missing.
    """

    def __init__(self, folder: str | Path, **settings: Any) -> None:
        self.folder = RunFolder(folder)
        self.settings: Settings = self.folder.resolve(_plain(settings))
        self._settle_dtype()
        self.pool = self._pool(self.settings.pool)
        self._encoded: EncodedPool | None = None

    def encode(self) -> EncodedPool:
        """Tokens and response masks of every usable row."""
        with self.folder.locked():
            return self._encode()

    def warmup(self) -> Trajectory:
        """The warm-up run; also encodes."""
        with self.folder.locked():
            return self._warmup()

    def extract(self) -> Features:
        """Gradient features of the pool at every checkpoint; also encodes and warms up."""
        with self.folder.locked():
            return self._extract()

    def target_features(self) -> Features:
        """Features of the target's rows: plain gradients (LESS, arXiv 2402.04333, section 3.2), same projection.

        Raises:
            SelectionError: the run has no target.
        """
        with self.folder.locked():
            return self._target_features()

    def select(
        self, selector: Selector | str = "tagcos", budget: str | int | float = "5%", *, seed: int | None = None,
        out: str | Path | None = None, **parameters: Any,
    ) -> Result:  # fmt: skip
        """Choose a subset, doing first whatever it needs that is not there yet.

        Args:
            selector: a method, or its name with its parameters as keywords.
            budget: "5%", 0.05 (a share), or 500 (rows).
            seed: of the selection; the run's without.
            out: file for the chosen rows, byte for byte as in the pool; the run's own folder without.

        Returns:
            The selection and the paths of the subset, its sidecar table and the report.

        Raises:
            SettingsError: an unknown method or parameter, or a budget that makes no sense.
            SelectionError: the method needs a target and there is none.
        """
        chosen = method(selector, **parameters) if isinstance(selector, str) else selector
        if parameters and not isinstance(selector, str):
            raise SettingsError(f"give {', '.join(parameters)} to {type(selector).__name__}(…) itself.")
        if chosen.needs_target and not self.settings.target:
            raise SelectionError(f"{chosen.name} needs a target: files with examples to be good at (--target FILE).")
        check_budget(budget)
        subset = None if out is None else check_subset_path(out)
        seed = self.settings.seed if seed is None else seed
        with self.folder.locked():
            encoded = self._encode()
            count = parse_budget(budget, len(encoded))
            features = self._extract() if chosen.needs_features else Features.without_gradients(encoded.rows)
            wanted = chosen.needs_target or (chosen.uses_target and self.settings.target)
            target = self._target_features() if wanted else None
            with self.folder.timed(f"select {chosen.name}"):
                selection = chosen.select(features, count, target=target, seed=seed)
            return self._publish(chosen, selection, features, encoded, subset, seed)

    def _publish(
        self, selector: Selector, selection: Selection, features: Features, encoded: EncodedPool, out: Path | None,
        seed: int,
    ) -> Result:  # fmt: skip
        key = fingerprint([dict(selection.parameters), seed, self.settings.target, selection.indices.tolist()])[:8]
        folder = self.folder.selections / f"{selection.method}-{len(selection)}-{key}"
        selection.save(folder)
        job = {"method": selection.method, "parameters": dict(selection.parameters), "seed": seed}
        return publish(
            selection, features, self.pool, out or folder / "subset.jsonl",
            settings={"selection": job, **self.settings.model_dump(mode="json")}, model=self.model_name,
            render=lambda index: render_tokens(self.tokenizer, *encoded[index]),
            timings=[(stage, seconds, "") for stage, seconds in self.folder.timings().items()],
            cost=self._cost(selector, selection, encoded), refused_total=len(encoded.refused),
            duplicates_in_pool=sum(len(group) - 1 for group in duplicate_groups(encoded.rows)),
            refused=[(r.path, r.line or 0, r.reason) for r in encoded.refused[:500]],
        )  # fmt: skip

    def _cost(self, selector: Selector, selection: Selection, encoded: EncodedPool) -> dict[str, float | None]:
        """Seconds of the stages that the method needs, and of training for the warm-up's epochs at its pace."""
        seconds = self.folder.timings()
        stages = ["encode", f"select {selector.name}"]
        stages += ["warm-up", "features"] if selector.needs_features else []
        stages += ["target"] if selector.needs_target or (selector.uses_target and self.settings.target) else []
        cost: dict[str, float | None] = {"selection_seconds": sum(seconds.get(stage, 0.0) for stage in stages)}
        if "warm-up" not in seconds:
            return cost
        recipe = self.settings.warmup_recipe()
        plan = Plan(recipe, len(encoded))
        trained = sum(int(encoded.lengths[plan.batch(step)].sum()) for step in range(plan.last_step))
        pace = seconds["warm-up"] / trained * recipe.epochs
        cost["full_training_seconds"] = pace * int(encoded.lengths.sum())
        cost["subset_training_seconds"] = pace * int(encoded.lengths[selection.indices].sum())
        return cost

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        s = self.settings
        return load_tokenizer(self.model_name, trust_remote_code=s.trust_remote_code, revision=s.revision)

    @cached_property
    def encoder(self) -> Encoder:
        """Turns rows into tokens and response masks as this run does."""
        s = self.settings
        return Encoder(self.tokenizer, max_length=s.max_length, chat_template=s.chat_template, train_on=s.train_on)

    @cached_property
    def model(self) -> nn.Module:
        """The model with its trainable parameters, loaded when first needed."""
        s = self.settings
        loaded = load_model(
            self.model_name, dtype=s.dtype, device=s.device, trust_remote_code=s.trust_remote_code,
            revision=s.revision, attention=s.attention,
        )  # fmt: skip
        return prepare_trainable(
            loaded, lora=s.lora_recipe(), adapter=s.adapter, weights=s.weights, seed=s.warmup.seed or 0
        )

    @property
    def model_name(self) -> str:
        """Id or path of the model."""
        if not self.settings.model:
            raise RunError(f"{self.folder.path}: no model is set (--model).")
        return self.settings.model

    def _settle_dtype(self) -> None:
        """One precision for the whole run: going on with it on another device must not mix two in one store."""
        s = self.settings
        settled = settled_dtype(
            self.model_name, s.dtype, s.device, trust_remote_code=s.trust_remote_code, revision=s.revision
        )
        self.settings = s.model_copy(update={"dtype": settled})

    def _pool(self, paths: list[str]) -> Pool:
        s = self.settings
        return Pool(paths, fields=s.fields, on_bad_row=s.on_bad_row, source_field=s.source_field)

    def _encode(self) -> EncodedPool:
        if self._encoded is None:
            with self.folder.timed("encode"):
                self._encoded = encode_pool(self.pool, self.encoder, self.folder.encoded)
            self.folder.begin(self.settings)
        return self._encoded

    def _warmup(self) -> Trajectory:
        """The finished trajectory, for which no model is needed, or the warm-up that makes it."""
        encoded, manifest = self._encode(), self.folder.warmup / "model.json"
        model = {"model": self._model_digest, "data": encoded.manifest["settings"]}
        if manifest.exists() and read_json(manifest) != model:
            raise RunError(
                f"{self.folder.path}: the model or the pool's files have changed since the warm-up was made. "
                "Choose another run folder, or put them back."
            )
        write_json(manifest, model)
        try:
            return Trajectory(self.folder.warmup)
        except StoreError:
            with self.folder.timed("warm-up"):
                return warm_up(self.model, encoded, self.folder.warmup, self.settings.warmup_recipe())

    def _extract(self) -> Features:
        encoded, trajectory = self._encode(), self._warmup()
        with self.folder.timed("features"):
            store = self._fill(self.folder.features, encoded, trajectory, self.settings.feature_recipe(), "gradients")
            return store.features(encoded.rows)

    def _target_features(self) -> Features:
        if not self.settings.target:
            raise SelectionError("no target is set (--target FILE).")
        pool, trajectory = self._pool(self.settings.target), self._warmup()
        folder = self.folder.targets / fingerprint([pool.fingerprint(), self.encoder.settings()])
        with self.folder.timed("target"):
            encoded = encode_pool(pool, self.encoder, folder / "encoded")
            recipe = replace(self.settings.feature_recipe(), preconditioner="sgd")
            store = self._fill(folder / "features", encoded, trajectory, recipe, "target gradients")
            return store.features(encoded.rows)

    def _fill(
        self, folder: Path, encoded: EncodedPool, trajectory: Trajectory, recipe: Recipe, describe: str
    ) -> FeatureStore:
        provenance = {
            "model": self._model_digest, "model_dtype": self.settings.dtype, "data": encoded.manifest["settings"],
            "trajectory": [dict(checkpoint.sha256) for checkpoint in trajectory.checkpoints],
        }  # fmt: skip
        store = finished_store(folder, len(encoded), recipe, provenance)
        return store or extract(
            self.model, trajectory, encoded, folder, recipe, provenance=provenance, describe=describe
        )

    @cached_property
    def _model_digest(self) -> str:
        return model_fingerprint(self.model_name, revision=self.settings.revision)["digest"]


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Allow one path where a list is expected and Path objects, and make paths independent of the working folder."""
    settings = {key: value for key, value in settings.items() if value is not None}
    for key in ("pool", "target"):
        if key in settings:
            given = settings[key]
            items = [given] if isinstance(given, str | Path) else list(given)
            settings[key] = [_absolute(str(item)) for item in items]
    for key in ("model", "adapter", "chat_template"):
        if key in settings:
            settings[key] = _absolute(str(settings[key]))
    return settings


def _absolute(item: str) -> str:
    """A file, folder or glob of this machine as an absolute path, `name=` kept; anything else (a hub id) as it is."""
    name, equals, path = item.rpartition("=") if not Path(item).exists() else ("", "", item)
    local = Path(path).exists() or (glob.has_magic(path) and "://" not in path)
    return f"{name}{equals}{Path(path).absolute()}" if local else item
