"""The periodic table: symbols, places, and a drawing of one number an element."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape

import numpy as np

SYMBOLS: tuple[str, ...] = tuple(
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb "
    "Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts "
    "Og".split()
)
"""Symbols of the elements 1 to 118."""

ATOMIC_NUMBERS: dict[str, int] = {symbol: z for z, symbol in enumerate(SYMBOLS, start=1)}
"""Atomic number of each symbol."""

_NOBLE_GASES = (0, 2, 10, 18, 36, 54, 86, 118)
_WIDTH, _HEIGHT, _GAP = 56.0, 50.0, 3.0
# Pale and dark colours in turn, each with that of the writing on it; more groups begin again.
_GROUP_COLOURS = (
    ("#8ecae6", "#10151d"), ("#0b5d8a", "#ffffff"), ("#f4c27a", "#10151d"), ("#a84300", "#ffffff"),
    ("#a3d9b1", "#10151d"), ("#1b6b45", "#ffffff"), ("#e3b3d0", "#10151d"), ("#8a3a6c", "#ffffff"),
    ("#d9d38a", "#10151d"), ("#6b6416", "#ffffff"), ("#c3c8cf", "#10151d"), ("#4a525d", "#ffffff"),
)  # fmt: skip
# The rare earths stand below the table, this much apart from it.
_BREAK = 14.0


def place_of(atomic_number: int) -> tuple[int, int]:
    """Row and column of an element, from 0. Rows 7 and 8 hold the lanthanides and actinides, La to Yb and Ac to No.

    Raises:
        ValueError: no such element.
    """
    if not 1 <= atomic_number <= len(SYMBOLS):
        raise ValueError(f"atomic number {atomic_number} is not between 1 and {len(SYMBOLS)}")
    row = next(i for i, last in enumerate(_NOBLE_GASES[1:]) if atomic_number <= last)
    first, last = _NOBLE_GASES[row] + 1, _NOBLE_GASES[row + 1]
    if atomic_number - first < 2:
        # Hydrogen stands above the alkali metals, helium above the noble gases.
        return row, 17 if atomic_number == last else atomic_number - first
    if row >= 5 and atomic_number - first < 16:
        return row + 2, atomic_number - first
    return row, 17 - (last - atomic_number)


def draw_table(values: Mapping[str, float], titles: Mapping[str, str], shown: Callable[[float], str], unit: str) -> str:
    """An SVG of the periodic table with a colour and a number for every element that has a value.

    Args:
        values: by symbol; dark colours are large values, on a logarithmic scale. Unknown symbols are not drawn.
        titles: by symbol, what is said of it where a mouse rests on it.
        shown: how a value is written.
        unit: what stands at the scale.
    """
    known = {symbol: value for symbol, value in values.items() if symbol in ATOMIC_NUMBERS and np.isfinite(value)}
    positive = [value for value in known.values() if value > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    cells = []
    for symbol, atomic_number in ATOMIC_NUMBERS.items():
        colour = _colour(known[symbol], low, high) if symbol in known else None
        number = shown(known[symbol]) if symbol in known else ""
        title = titles.get(symbol, f"{symbol}: no atoms of it")
        cells.append(_cell(atomic_number, symbol, number, title, colour))
    width, height = 18 * (_WIDTH + _GAP), 9 * (_HEIGHT + _GAP) + _BREAK
    return (
        f'<svg class="table" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="periodic table">'
        f"{_scale(low, high, shown, unit) if positive else ''}{''.join(cells)}</svg>"
    )


def draw_groups(groups: Mapping[str, int], titles: Mapping[str, str]) -> str:
    """An SVG of the periodic table in which elements of the same group have the same colour and show its number.

    Args:
        groups: by symbol. Unknown symbols are not drawn.
        titles: by symbol, what is said of it where a mouse rests on it.
    """
    cells = []
    for symbol, atomic_number in ATOMIC_NUMBERS.items():
        known = symbol in groups
        colour = _GROUP_COLOURS[groups[symbol] % len(_GROUP_COLOURS)] if known else None
        title = titles.get(symbol, f"{symbol}: no atoms of it")
        cells.append(_cell(atomic_number, symbol, str(groups[symbol]) if known else "", title, colour))
    width, height = 18 * (_WIDTH + _GAP), 9 * (_HEIGHT + _GAP) + _BREAK
    return (
        f'<svg class="table" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="periodic table of groups">'
        f"{''.join(cells)}</svg>"
    )


def _cell(atomic_number: int, symbol: str, number: str, title: str, colour: tuple[str, str] | None) -> str:
    row, column = place_of(atomic_number)
    x, y = column * (_WIDTH + _GAP), row * (_HEIGHT + _GAP) + (_BREAK if row > 6 else 0)
    fill, ink = colour or ("#f4f5f7", "#b3bac4")
    lines = [
        f'<g class="element" fill="{ink}"><title>{escape(title)}</title>',
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{_WIDTH}" height="{_HEIGHT}" rx="3" fill="{fill}"/>',
        f'<text x="{x + 4:.1f}" y="{y + 12:.1f}" font-size="9" opacity="0.75">{atomic_number}</text>',
        f'<text x="{x + _WIDTH / 2:.1f}" y="{y + 27:.1f}" font-size="17" font-weight="600" text-anchor="middle">'
        f"{symbol}</text>",
    ]
    if number:
        lines.append(
            f'<text x="{x + _WIDTH / 2:.1f}" y="{y + 43:.1f}" font-size="12" text-anchor="middle">{escape(number)}'
            "</text>"
        )
    return "".join([*lines, "</g>"])


def _colour(value: float, low: float, high: float) -> tuple[str, str]:
    """Colour of a cell and of the writing on it."""
    from matplotlib import colormaps

    share = float(np.log(max(value, low) / low) / np.log(high / low)) if high > low else 0.5
    red, green, blue = (round(255 * channel) for channel in colormaps["cividis_r"](0.04 + 0.9 * share)[:3])
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 125
    return f"#{red:02x}{green:02x}{blue:02x}", "#10151d" if light else "#ffffff"


def _scale(low: float, high: float, shown: Callable[[float], str], unit: str) -> str:
    """The colours from low to high, in the empty space above the transition metals."""
    steps = 48
    x, y, width = 3 * (_WIDTH + _GAP) + 10, 44.0, 7.5 * (_WIDTH + _GAP)
    parts = [f'<text x="{x:.1f}" y="{y - 10:.1f}" font-size="13" fill="#3c4654">{escape(unit)}</text>']
    for step in range(steps):
        value = low * (high / low) ** (step / (steps - 1))
        fill = _colour(value, low, high)[0]
        parts.append(
            f'<rect x="{x + step * width / steps:.2f}" y="{y}" width="{width / steps + 0.4:.2f}" height="14" '
            f'fill="{fill}"/>'
        )
    middle = float(np.sqrt(low * high))
    ends = ((low, 0.0, "start"), (middle, 0.5, "middle"), (high, 1.0, "end")) if high > low else ((low, 0.5, "middle"),)
    parts += [
        f'<text x="{x + share * width:.1f}" y="{y + 30:.1f}" font-size="12" fill="#3c4654" text-anchor="{anchor}">'
        f"{escape(shown(value))}</text>"
        for value, share, anchor in ends
    ]
    return "".join(parts)
