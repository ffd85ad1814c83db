"""Numbers and data text as a person reads them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

# C0 controls except tab and newline, delete, C1 controls, and lone surrogates: none can stand in a page or a terminal.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
UNKNOWN = "–"


def visible(text: str) -> str:
    """Replace characters that a page or a terminal cannot show by a visible sign for them (NUL becomes ␀)."""

    def sign(match: re.Match[str]) -> str:
        code = ord(match[0])
        return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"

    return _UNPRINTABLE.sub(sign, text)


def shorten(text: str, limit: int) -> str:
    """Cut `text` to `limit` characters, with an ellipsis in place of the rest."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def known(value: float | int | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def count(value: int) -> str:
    return f"{value:,}"


def counted(value: int, unit: str) -> str:
    """A number of things, by the unit's name in the singular: 1 row, 2 rows."""
    return f"{count(value)} {unit}" if value == 1 else f"{count(value)} {unit}s"


def number(value: float | None) -> str:
    """Four significant digits, thousands separated; a dash when unknown."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def about(value: float) -> str:
    """Two significant digits, for numbers that are predictions."""
    return number(float(f"{value:.2g}"))


def percent(share: float | None) -> str:
    """A share of one as percent: one decimal, more digits only below one percent."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    if 0 < share < 0.001:
        return f"{100 * share:.2g}%"
    return f"{100 * share:.2f}%" if 0 < share < 0.01 else f"{100 * share:.1f}%"


def duration(seconds: float | None) -> str:
    """Seconds in the unit a person would use."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    for limit, divisor, unit in ((99.5, 1, "s"), (99.5 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.2g} {unit}" if seconds / divisor < 10 else f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:,.1f} days"


def money(seconds: float, price_per_hour: float | None, currency: str = "") -> str:
    """What so many seconds cost."""
    if price_per_hour is None:
        return UNKNOWN
    amount = price_per_hour * seconds / 3600
    text = "under 0.01" if 0 < amount < 0.005 else f"{amount:,.2f}"
    return f"{text} {currency}".strip()


def times(ratio: float) -> str:
    """A ratio: ×0.42, ×1.30, ×12."""
    return f"×{ratio:.2f}" if ratio < 9.995 else f"×{ratio:,.0f}"


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can close the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) pairs, in the order given."""
    pairs: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            pairs += flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            pairs.append((f"{prefix}{name}", text))
    return pairs
