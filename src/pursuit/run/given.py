"""What a run is given: the pool's files, the tokenizer and the model, each opened when it is first needed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pursuit.devices import free_cached_memory
from pursuit.encoding import Encoder
from pursuit.errors import RunError
from pursuit.models.configured import load_configured
from pursuit.models.loading import load_tokenizer, model_fingerprint
from pursuit.models.quantized import check_four_bits
from pursuit.models.trainable import prepare_trainable
from pursuit.pool import Pool
from pursuit.settings import Settings


class Given:
    """Opened as the settings say.

    Args:
        place: the run's folder, for messages.
        settings: resolved and settled.
    """

    def __init__(self, place: Path, settings: Settings) -> None:
        self._place, self._settings = place, settings

    def pool(self, paths: list[str]) -> Pool:
        """The rows of these files."""
        s = self._settings
        return Pool(paths, fields=s.fields, on_bad_row=s.on_bad_row, source_field=s.source_field)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        s = self._settings
        return load_tokenizer(self.model_name, trust_remote_code=s.trust_remote_code, revision=s.revision)

    @cached_property
    def encoder(self) -> Encoder:
        """Turns rows into tokens and response masks as this run does."""
        s = self._settings
        if s.load_in_4bit:  # found before the tokens of a large pool are made
            check_four_bits(self.model_name)
        return Encoder(self.tokenizer, max_length=s.max_length, chat_template=s.chat_template, train_on=s.train_on)

    @cached_property
    def model(self) -> nn.Module:
        """The model with its trainable parameters."""
        s = self._settings
        return prepare_trainable(
            self._loaded(), lora=s.lora_recipe(), adapter=s.adapter, weights=s.weights, seed=s.warmup.seed or 0
        )

    @cached_property
    def base_model(self) -> nn.Module:
        """The model as it was given: a copy of its own where a warm-up trains its weights in place."""
        return self._loaded() if self._settings.weights else self.model

    def forget_model(self) -> None:
        """Load it anew when it is next needed: one that was trained is not where a warm-up begins, and others may want
        its memory meanwhile.
        """
        for name in ("model", "base_model"):
            self.__dict__.pop(name, None)
        free_cached_memory()

    @property
    def model_name(self) -> str:
        """Id or path of the model."""
        if not self._settings.model:
            raise RunError(f"{self._place}: no model is set (--model).")
        return self._settings.model

    @cached_property
    def model_digest(self) -> str:
        """Digest of the model's files."""
        return model_fingerprint(self.model_name, revision=self._settings.revision)["digest"]

    def _loaded(self) -> PreTrainedModel:
        return load_configured(self._settings.model_copy(update={"model": self.model_name}))
