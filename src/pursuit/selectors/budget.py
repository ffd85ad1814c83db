"""How many examples to choose: a share of the pool or a number."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

from pursuit.errors import SettingsError

ACCEPTED = 'Give a share such as "5%" or 0.05, or a whole number of rows such as 500.'


def parse_budget(budget: str | float, num_rows: int) -> int:
    """The number of rows that a budget means for a pool of `num_rows` rows.

    "5%" and 0.05 are a share, rounded to the nearest whole number (a half up) [ours]; a whole number is the number of
    rows, as a number or as text. 1.0 could be meant as either, and is refused.

    Raises:
        SettingsError: not a number, 0 or less, less than one row, more than the pool, or a fraction of a row.
    """
    share, value = _parsed(budget)
    if value <= 0:
        raise SettingsError(f"budget {budget!r} would choose nothing. {ACCEPTED}")
    rows = (value * num_rows).to_integral_value(rounding=ROUND_HALF_UP) if share else value
    if rows < 1:
        raise SettingsError(f"budget {budget!r} is less than one of {num_rows:,} rows. {ACCEPTED}")
    if rows > num_rows:
        raise SettingsError(f"budget {budget!r} is more than the pool's {num_rows:,} usable rows. {ACCEPTED}")
    return int(rows)


def check_budget(budget: str | float) -> None:
    """Raise SettingsError for a budget that no pool could satisfy, before the size of the pool is known."""
    share, value = _parsed(budget)
    if value <= 0 or (share and value > 1):
        raise SettingsError(f"budget {budget!r} is not possible for any pool. {ACCEPTED}")


def _parsed(budget: str | float) -> tuple[bool, Decimal]:
    """Whether it is a share, and the share or the number."""
    text = str(budget).strip().replace("_", "")
    percent = text.endswith("%")
    try:
        value = Decimal(text.removesuffix("%").strip())
    except InvalidOperation:
        value = Decimal("nan")
    if isinstance(budget, bool) or not value.is_finite():
        raise SettingsError(f"budget {budget!r} is not a number. {ACCEPTED}")
    if percent:
        return True, value / 100
    if value == 1 and (isinstance(budget, float) or "." in text):
        raise SettingsError(f"budget {budget!r} could be one row or all of them: write 1 or 100%.")
    if value >= 1 and value != value.to_integral_value():
        raise SettingsError(f"budget {budget!r} is not a whole number of rows. {ACCEPTED}")
    return value < 1, value
