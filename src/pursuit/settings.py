"""Every setting of a run, typed once: YAML files, command-line flags and Python all pass through here.

The nesting is the same everywhere: `warmup: {learning_rate: 1e-4}` in YAML is `--warmup.learning-rate 1e-4` as a flag
and `warmup={"learning_rate": 1e-4}` in Python.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from pursuit.errors import SettingsError
from pursuit.recipes import Lora, Recipe, WarmUp
from pursuit.settings_groups import FeatureSettings, Group, LoraSettings, WarmupSettings, split_commas

Model = TypeVar("Model", bound=BaseModel)


class Settings(Group):
    """What a run is made from."""

    model: str | None = Field(None, description="Hub id, folder, or .gguf file of a causal language model.")
    pool: list[str] = Field(default_factory=list, description="JSONL, Parquet, CSV files, globs or data sets to choose "
                            "from; name=path names a source.")  # fmt: skip
    target: list[str] = Field(default_factory=list, description="Files with examples of what the model should become "
                              "good at, for methods that use a target; name=path names a task.")  # fmt: skip
    fields: dict[str, str] = Field(default_factory=dict, description="Field names that differ from ours: "
                                   "--fields.prompt frage --fields.response antwort.")  # fmt: skip
    source_field: str = Field("source", description="Field of a row that names its source.")
    on_bad_row: Literal["error", "skip"] = Field("error", description="Stop at a row that cannot be used, or list it.")
    max_length: int = Field(2048, ge=2, description="Tokens kept of an example.")
    chat_template: str | None = Field(None, description="The tokenizer's own if not given; or plain, chatml, a file.")
    train_on: Literal["all", "last"] = Field("all", description="Learn from all assistant turns or the last.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model on the hub.")
    trust_remote_code: bool = Field(False, description="Run Python code that the model brings along.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of the model; auto: its own on a GPU, float32 on a CPU."
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, mps; auto: a GPU if there is one.")
    devices: list[str] = Field(default_factory=list, description="Several devices of this machine, a process each for "
                               "the gradients: cuda:0,cuda:1.")  # fmt: skip
    engine: Literal["local", "ray"] = Field("local", description="Where work runs: in this process, or on Ray.")
    ray_address: str | None = Field(None, description="Of a running Ray cluster, auto for the one of this machine; Ray "
                                    "is started here if not given.")  # fmt: skip
    workers: int | None = Field(None, ge=1, description="Of Ray; as many as fit if not given.")
    store: str | None = Field(None, description="URL (fsspec: s3://bucket/x) where the gradients' shards are kept too; "
                              "the run folder then holds copies.")  # fmt: skip
    attention: str | None = Field(None, description="transformers' attention implementation, sdpa for example.")
    load_in_4bit: bool = Field(False, description="Keep frozen weights in 4 bits (NF4), as QLoRA does: a quarter of "
                               "their memory, and other gradients.")  # fmt: skip
    adapter: str | None = Field(None, description="An existing PEFT adapter to train on, instead of a new LoRA.")
    weights: list[str] = Field(default_factory=list, description="Patterns of the model's own weights to train instead "
                               "of a LoRA: 'model.layers.2?.mlp.*'.")  # fmt: skip
    lora: LoraSettings = Field(default_factory=LoraSettings)
    warmup: WarmupSettings = Field(default_factory=WarmupSettings)
    features: FeatureSettings = Field(default_factory=FeatureSettings)
    seed: int = Field(0, ge=0, description="Of everything random; on an existing run, of the selection alone.")

    @field_validator("devices", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return split_commas(value)

    @field_validator("pool", "target", "weights", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        """`a.jsonl` as well as `[a.jsonl]`; a path may hold commas."""
        return [value] if isinstance(value, str) else value

    @field_validator("weights")
    @classmethod
    def _four_bits_stay_frozen(cls, value: list[str], others: ValidationInfo) -> list[str]:
        if value and others.data.get("load_in_4bit"):
            raise ValueError("they cannot be trained in 4 bits; leave out load_in_4bit, or take a LoRA or an adapter")
        return value

    @model_validator(mode="after")
    def _seeds(self) -> Self:
        """Warm-up and projection keep the seed that the run began with."""
        for group in (self.warmup, self.features):
            if group.seed is None:
                object.__setattr__(group, "seed", self.seed)
        return self

    @property
    def held_as(self) -> str:
        """How the frozen weights are held, for records of what a result was made with."""
        return f"{self.dtype} and 4 bits" if self.load_in_4bit else self.dtype

    def lora_recipe(self) -> Lora | None:
        """The new adapter to make; None when an adapter or weights are named."""
        if self.adapter or self.weights:
            return None
        return Lora(self.lora.rank, self.lora.alpha, self.lora.dropout, tuple(self.lora.targets or ()) or None)

    def warmup_recipe(self) -> WarmUp:
        """The warm-up's settings as the trainer takes them."""
        values = self.warmup.model_dump()
        steps = values.pop("checkpoint_steps")
        values["micro_batch_tokens"] = values["micro_batch_tokens"] or WarmUp.micro_batch_tokens
        return WarmUp(checkpoint_steps=None if steps is None else tuple(steps), **values)

    def feature_recipe(self) -> Recipe:
        """The features' settings as extraction takes them."""
        values = self.features.model_dump(exclude={"target_preconditioner", "directions"})
        if values["momentum"] is None:
            values["momentum"] = values["preconditioner"] == "less"
        values["batch_tokens"] = values["batch_tokens"] or Recipe.batch_tokens
        return Recipe(**values)

    def target_recipe(self, follows: bool) -> Recipe:
        """Those of the target's rows, for a method that follows the target or not."""
        recipe, kind = self.feature_recipe(), self.features.target_preconditioner
        same = follows if kind == "auto" else kind == "same"
        return recipe if same else replace(recipe, preconditioner="sgd")


class Job(Settings):
    """What a YAML file may say: the settings, and which subset to choose."""

    run: Path | None = None
    method: str = "tagcos"
    budget: str | int | float = "5%"
    out: Path | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    drop_sources: list[str] = Field(default_factory=list)
    drop_leaks: bool = False

    @field_validator("drop_sources", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        """`forum` as well as `[forum]`."""
        return [value] if isinstance(value, str) else value


JOB = frozenset(Job.model_fields) - frozenset(Settings.model_fields)


def job_from(values: Mapping[str, Any]) -> tuple[Job, dict[str, Any]]:
    """What a YAML file says of the subset, and the settings in it as they were written.

    Raises:
        SettingsError: an unknown key or a value that cannot be accepted; each one is named.
    """
    values = {key: value for key, value in values.items() if value is not None or key not in JOB}
    return _validated(Job, values), {key: value for key, value in values.items() if key not in JOB}


# What may differ between two calls on one run folder without changing what is stored there.
FREE = frozenset({
    "target", "seed", "device", "devices", "attention", "warmup.micro_batch_tokens", "features.batch_tokens",
    "features.target_preconditioner",
    "trust_remote_code", "engine", "ray_address", "workers",
})  # fmt: skip


LATER = ("adapter", "weights", "dtype", "load_in_4bit", "lora", "warmup", "features")  # of the stages after the tokens


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` over it, group by group."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "fields"
        merged[key] = merge(merged[key], value) if both else value
    return merged


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Validate; a SettingsError names each key, its value and what would be accepted."""
    return _validated(Settings, values)


def _validated(kind: type[Model], values: Mapping[str, Any]) -> Model:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise SettingsError(explain(error, kind)) from None


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """A validation error in words for the person who wrote the settings."""
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        key = ".".join(path)
        if problem["type"] == "extra_forbidden":
            known = _known_keys(kind, path[:-1])
            near = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}."
            lines.append(f"{key}: unknown setting; {hint}")
        else:
            lines.append(f"{key} = {problem['input']!r}: {problem['msg'].lower()}.")
    return "\n".join(lines)


def _known_keys(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return list(kind.model_fields)


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings from a YAML file, not yet validated; a SettingsError names the file and line of a mistake."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)}).") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected settings as `key: value` lines.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "", *, free: Collection[str] = ()
) -> list[str]:
    """The settings that shape stored results and differ, as "key: stored …, now …"; but for those that are free."""
    found = []
    for key in sorted(stored.keys() | wanted.keys()):
        name, old, new = prefix + key, stored.get(key), wanted.get(key)
        if name in FREE or name in free or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, name + ".")
        else:
            found.append(f"{name}: the run has {old!r}, now {new!r}")
    return found
