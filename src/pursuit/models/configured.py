"""The model that settings describe."""

from __future__ import annotations

from transformers import PreTrainedModel

from pursuit.errors import ModelError
from pursuit.models.loading import load_model
from pursuit.settings import Settings


def load_configured(settings: Settings) -> PreTrainedModel:
    """The base model, without an adapter; errors as `load_model`."""
    if settings.model is None:
        raise ModelError("no model is named; give one with --model.")
    return load_model(
        settings.model, dtype=settings.dtype, device=settings.device, trust_remote_code=settings.trust_remote_code,
        revision=settings.revision, attention=settings.attention, load_in_4bit=settings.load_in_4bit,
    )  # fmt: skip
