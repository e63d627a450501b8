"""Numbers as files hold them, and as people read them."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"
"""What stands where there is no number."""

LARGEST = 1e30
"""Numbers beyond this are left out: they come from a run that has failed, and axes cannot hold them."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def as_number(value: Any) -> float:
    """The value as a float; NaN if it is none, not finite, or too large to mean anything."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if abs(number) <= LARGEST else math.nan


def three_figures(value: Any, scale: float = 1.0) -> str:
    """The value times the scale with about three significant figures, as 1,234 or 12.3 or 0.0123."""
    number = as_number(value) * scale
    size = abs(number)
    if not math.isfinite(number):
        return MISSING
    if size >= 99.95:
        return f"{number:,.0f}"
    if size >= 9.995:
        return f"{number:.1f}"
    if size >= 0.9995:
        return f"{number:.2f}"
    return f"{number:#.3g}" if size >= 1e-3 else _scientific(number) if size else "0"


def milli(value: Any) -> str:
    """The value in thousandths of its unit: eV become meV."""
    return three_figures(value, 1000)


def whole(value: Any) -> str:
    """A count with thousands set apart."""
    number = as_number(value)
    return MISSING if math.isnan(number) else f"{number:,.0f}"


def ratio(value: Any, to: Any) -> str:
    """How many times the second is the first, as 7.3 ×."""
    first, second = as_number(value), as_number(to)
    return MISSING if math.isnan(first * second) or first == 0 else f"{three_figures(second / first)} ×"


def duration(seconds: Any) -> str:
    """A time as 14 s, 3 min 20 s or 2 h 5 min."""
    number = as_number(seconds)
    if math.isnan(number):
        return MISSING
    minutes, rest = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{rest} s" if number >= 9.95 else f"{number:.1f} s"


def on_axis(value: float, *_: object) -> str:
    """The number beside a tick of an axis, as 0.05, 200, 20k or 3×10⁻⁵."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.999e-4 or size >= 1e15:
        return _scientific(value)
    for unit, suffix in _SUFFIXES:
        if size >= max(unit, 1e4) * 0.9999999:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.6g}".replace("-", "−")


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return power if mantissa == "1" else f"{mantissa}×{power}"
