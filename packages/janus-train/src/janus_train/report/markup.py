"""Small pieces of HTML. What comes in as text is escaped; what comes in as markup has markup in its name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from janus_train.report.plots import Style


class Section(NamedTuple):
    """A part of the page: the name that links go to, its title, and its markup."""

    name: str
    title: str
    body: str


def table(header: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table; columns whose places are in `words` stand to the left, the others are numbers and stand to the right."""
    kinds = [' class="word"' if place in words else "" for place in range(len(header))]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for text, kind in zip(header, kinds, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for text, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for, in two columns."""
    body = "\n".join(
        f'<tr><td class="word">{escape(name)}</td><td class="word">{escape(value)}</td></tr>' for name, value in rows
    )
    return f'<div class="wide"><table class="pairs"><tbody>\n{body}\n</tbody></table></div>'


def cards(rows: Iterable[tuple[str, str, str]]) -> str:
    """Headline numbers: what each is, the number, and a word about it."""
    body = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(about)}</small></dd></div>"
        for name, value, about in rows
    )
    return f'<dl class="cards">\n{body}\n</dl>'


def plot(title: str, about: str, svg_markup: str, width: int | None = None) -> str:
    """A plot under its title, at most so many pixels wide; where there is no plot, a word that nothing was logged."""
    drawing = svg_markup or '<p class="none">nothing logged</p>'
    limit = f' style="width:{width}px;max-width:100%"' if width else ""
    caption = f"{escape(title)} <span>{escape(about)}</span>" if about else escape(title)
    return f"<figure{limit}><figcaption>{caption}</figcaption>\n{drawing}</figure>"


def legend(entries: Iterable[tuple[str, Style]]) -> str:
    """Names of curves beside a piece of each."""
    return (
        '<div class="legend">'
        + "".join(f"<span>{_line(style)}{escape(name)}</span>" for name, style in entries)
        + ("</div>")
    )


def fold(title: str, body_markup: str) -> str:
    """What is there on request."""
    return f"<details><summary>{escape(title)}</summary>{body_markup}</details>"


def none(text: str) -> str:
    """A word about what is not there."""
    return f'<p class="none">{escape(text)}</p>'


def remarks(title: str, texts: Sequence[str]) -> str:
    """A list that should not be overlooked; nothing if it is empty."""
    if not texts:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<div class="missing"><strong>{escape(title)}</strong><ul>{items}</ul></div>'


def _line(style: Style) -> str:
    dashes = f' stroke-dasharray="{" ".join(f"{1.4 * length:g}" for length in style.dashes)}"' if style.dashes else ""
    return (
        f'<svg viewBox="0 0 28 10" aria-hidden="true"><line x1="0" y1="5" x2="28" y2="5" stroke="{style.colour}" '
        f'stroke-width="2.6"{dashes}/></svg>'
    )
