"""A run: pool and model in, features on disk, as many selections from them as one likes.

    run = Run("runs/x", model="SmolLM2-135M", pool=["a.jsonl"])
    selection = run.select(Tagcos(clusters=100), budget=0.05, out="subset.jsonl")

Every stage is skipped when its result already stands in the folder, and goes on where it was killed.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from torch import nn
from transformers import PreTrainedTokenizerBase

from pursuit.batches import usual_batch_tokens
from pursuit.encoding import Encoder
from pursuit.engine import Engine, engine_for
from pursuit.errors import RunError
from pursuit.export.subset import Result, refuse_shared_table, written
from pursuit.files import refuse_overwriting, refuse_unwritable
from pursuit.models.loading import find_device, settled_dtype
from pursuit.pool import Pool, check_subset_path, check_table
from pursuit.pool.sources import split_name
from pursuit.progress import say
from pursuit.run.choosing import Wish, checked_selector, choose
from pursuit.run.folder import RunFolder
from pursuit.run.jobs import OnDevices
from pursuit.run.reporting import Choice, Chosen, publish_choice, report_again
from pursuit.run.saved import find_selection
from pursuit.run.stages import Fill, Stages
from pursuit.run.tokens import Rows
from pursuit.run.workers import fill_on
from pursuit.selectors import Selection, Selector
from pursuit.settings import Settings
from pursuit.store.features import Features
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
        self._tells_target = not settings.get("target")  # once
        self.settings: Settings = _settled(self.folder.resolve(_plain(settings)))
        self.stages = Stages(self.folder, self.settings, self._fill())
        _ = self.pool  # what is missing is found now

    @property
    def pool(self) -> Pool:
        """The rows to choose from, appended ones too."""
        return self.stages.pool

    @cached_property
    def engine(self) -> Engine:
        """Where work runs: this process, or Ray's workers, which are started when first asked for."""
        s = self.settings
        return engine_for(
            s.engine, address=s.ray_address, workers=s.workers, device=s.device, folder=self.folder.path.absolute()
        )

    def close(self) -> None:
        """Stop Ray's workers, where they were started; the run itself can be used on."""
        if "engine" in self.__dict__:
            self.engine.close()
            del self.engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r}, model={self.settings.model!r})"

    def _fill(self) -> Fill | None:
        """How stores are filled; None for this process alone."""
        s = self.settings
        if s.engine != "local":
            return lambda *what: fill_on(self.engine, self.folder, s)(*what)
        return OnDevices(self.folder, s) if len(s.devices) > 1 else None

    def encode(self) -> Rows:
        """Tokens and response masks of every usable row."""
        with self.folder.locked():
            return self.stages.encode()

    def warmup(self) -> Trajectory:
        """The warm-up run, and the directions that features are to keep, if any; also encodes."""
        with self.folder.locked():
            trajectory = self.stages.warmup(check=True)
            self.stages.directions(trajectory)
            return trajectory

    def extract(self, *, append: str | Path | Sequence[str | Path] | None = None) -> Features:
        """Gradient features of the pool at every checkpoint; also encodes and warms up.

        Args:
            append: more files, whose rows join the run for good: only their gradients are computed, at the checkpoints
                that the run has.
        """
        with self.folder.locked():
            if append is not None:
                self._append(_paths(append))
            return self.stages.features()

    def target_features(self, *, follows: bool = False) -> Features:
        """Features of the target's rows, same projection: plain gradients (LESS, arXiv 2402.04333, section 3.2).

        Args:
            follows: as methods get them that follow the target (`gtp`, `omp`): with the preconditioner of the pool's
                rows. `features.target_preconditioner` may say otherwise for both.

        Raises:
            SelectionError: the run has no target.
        """
        with self.folder.locked():
            return self.stages.target_features(follows)

    def _append(self, paths: list[str]) -> None:
        s = self.settings
        more = Pool(paths, fields=s.fields, on_bad_row=s.on_bad_row, source_field=s.source_field)
        self.stages.warmup()  # on the rows that the run began with, whatever joins them
        parts = self.folder.parts(s.pool)
        if any(part.paths == paths for part in parts[1:]):
            say(f"{', '.join(paths)}: already in this run, nothing is appended")
            return  # the same command again
        if twice := {source.path for source in self.pool.sources} & {source.path for source in more.sources}:
            raise RunError(f"{', '.join(sorted(twice))}: already in this run. Append only files that are new.")
        part = self.folder.part(len(parts), paths)
        self.stages.tokens.encode_new(part)
        self.folder.append(part, s.on_bad_row)
        self.stages = Stages(self.folder, s, self._fill())

    def select(
        self, selector: Selector | str = "tagcos", budget: str | int | float = "5%", *, seed: int | None = None,
        out: str | Path | None = None, drop_sources: Sequence[str] = (), drop_leaks: bool = False, **parameters: Any,
    ) -> Result:  # fmt: skip
        """Choose a subset, doing first whatever it needs that is not there yet.

        Args:
            selector: a method, or its name with its parameters as keywords.
            budget: "5%", 0.05 (a share), or 500 (rows).
            seed: of the selection; the run's without.
            out: file for the chosen rows, byte for byte as in the pool; the run's own folder without.
            drop_sources: sources of the pool to leave out, as if they were not there; a share is of the rest.
            drop_leaks: leave out rows that stand in the target, with their text or their prompt. Otherwise they are
                only told of.

        Returns:
            The selection and the paths of the subset, its sidecar table and the report.

        Raises:
            SettingsError: an unknown method or parameter, or a budget that makes no sense.
            SelectionError: the method needs a target and there is none.
        """
        chosen = checked_selector(selector, budget, parameters, self.settings)
        subset = None if out is None else check_subset_path(out)
        if subset is not None:
            refuse_overwriting(written(subset), self.stages.inputs())
            refuse_shared_table(subset)
            refuse_unwritable(written(subset))
            check_table(self.stages.pool, subset, drop_sources)
        with self.folder.locked():
            made = self._choose(chosen, budget, seed, drop_sources, drop_leaks)
            return publish_choice(self.stages, chosen, made, subset)

    def choose(
        self, selector: Selector | str = "tagcos", budget: str | int | float = "5%", *, seed: int | None = None,
        **parameters: Any,
    ) -> tuple[Selection, float]:  # fmt: skip
        """As `select`, but the selection is not kept in the run, and no file is written of it.

        Returns:
            The selection, and the seconds that it took beside those of the stages before it.
        """
        chosen = checked_selector(selector, budget, parameters, self.settings)
        with self.folder.locked():
            made = self._choose(chosen, budget, seed)
        return made.selection, made.choice.seconds

    def _choose(
        self, selector: Selector, budget: str | int | float, seed: int | None, drop_sources: Sequence[str] = (),
        drop_leaks: bool = False,
    ) -> Chosen:  # fmt: skip
        seed = self.settings.seed if seed is None else seed
        wish = Wish(selector, budget, seed, drop_sources, drop_leaks, self._tells_target)
        self._tells_target = self._tells_target and not selector.uses_target
        return choose(self.stages, None if self.settings.engine == "local" else self.engine, wish)

    def report(
        self, selection: str | Path | None = None, *, agreement: bool = False, price_per_hour: float | None = None,
        currency: str = "", out: str | Path | None = None,
    ) -> Path:  # fmt: skip
        """Write the report of a selection anew, and perhaps with more in it.

        Args:
            selection: a name in the run's `selections/`, its beginning, or a path; not needed where there is one only.
            agreement: run the method again with another seed, on single checkpoints and on halves of the projection,
                to show how much of the choice stays.
            price_per_hour: of the machine, in `currency`, to show money beside time.
            out: the page; beside the subset without.
        """
        folder = find_selection(self.folder.selections, selection)
        wanted = Choice.load(folder).target
        run = self if wanted == list(self.settings.target) else Run(self.folder.path, target=wanted)
        return report_again(
            run.stages, folder, agreement=agreement, price_per_hour=price_per_hour, currency=currency,
            out=None if out is None else Path(out),
        )  # fmt: skip

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.stages.given.tokenizer

    @property
    def encoder(self) -> Encoder:
        """Turns rows into tokens and response masks as this run does."""
        return self.stages.given.encoder

    @property
    def model(self) -> nn.Module:
        """The model with its trainable parameters, loaded when first needed."""
        return self.stages.given.model

    @property
    def model_name(self) -> str:
        """Id or path of the model."""
        return self.stages.given.model_name


def _settled(s: Settings) -> Settings:
    """One precision for the whole run: going on with it on another device must not mix two in one store. And what
    suits the device."""
    dtype = settled_dtype(s.model or "", s.dtype, s.device, trust_remote_code=s.trust_remote_code, revision=s.revision)
    tokens = usual_batch_tokens(find_device(s.device))
    features = s.features.model_copy(update={"batch_tokens": s.features.batch_tokens or tokens})
    warmup = s.warmup.model_copy(update={"micro_batch_tokens": s.warmup.micro_batch_tokens or tokens})
    return s.model_copy(update={"dtype": dtype, "features": features, "warmup": warmup})


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Allow one path where a list is expected and Path objects, and make paths independent of the working folder."""
    settings = {key: value for key, value in settings.items() if value is not None}
    for key in ("pool", "target"):
        if key in settings:
            settings[key] = _paths(settings[key])
    for key in ("model", "adapter", "chat_template"):
        if key in settings:
            settings[key] = _absolute(str(settings[key]))
    return settings


def _paths(given: str | Path | Sequence[str | Path]) -> list[str]:
    items = [given] if isinstance(given, str | Path) else list(given)
    return [_absolute(str(item)) for item in items]


def _absolute(item: str) -> str:
    """A file, folder or glob of this machine as an absolute path, `name=` kept; anything else (a hub id) as it is."""
    name, path = split_name(item)
    local = Path(path).exists() or (glob.has_magic(path) and "://" not in path)
    return f"{f'{name}=' if name else ''}{Path(path).absolute()}" if local else item
