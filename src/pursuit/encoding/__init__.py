"""From examples to tokens with a response mask, and the store that holds them."""

from __future__ import annotations

from pursuit.encoding.build import encode_pool
from pursuit.encoding.duplicates import duplicate_groups
from pursuit.encoding.encoder import Encoded, Encoder, render_tokens, tokenizer_digest
from pursuit.encoding.store import EncodedPool
from pursuit.encoding.templates import BUILT_IN

__all__ = [
    "BUILT_IN", "Encoded", "EncodedPool", "Encoder", "duplicate_groups", "encode_pool", "render_tokens",
    "tokenizer_digest",
]  # fmt: skip
