"""The page: its style, its parts, and how they are put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from janus_train.report import sections
from janus_train.report.markup import Section
from janus_train.report.physics import physics_sections
from janus_train.report.read import Run
from janus_train.report.speed import speed

_STYLE = """
:root { color-scheme: light; --page: #fff; --bar: rgba(255,255,255,.96); --ink: #18202b; --soft: #5b6675;
  --line: #dfe4ea; --panel: #f6f7f9; --accent: #0072b2; --notice: #fdf8ec; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); font-variant-numeric: tabular-nums;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main, header > div, nav > div { max-width: 1140px; margin: 0 auto; padding: 0 24px; }
header { padding: 36px 0 8px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; font-weight: 650; letter-spacing: -0.01em; overflow-wrap: anywhere; }
header p { margin: 6px 0 0; color: var(--soft); }
nav { position: sticky; top: 0; z-index: 2; background: var(--bar); border-bottom: 1px solid var(--line); }
nav > div { display: flex; flex-wrap: wrap; gap: 2px 20px; padding-top: 9px; padding-bottom: 9px; }
nav a { color: var(--soft); text-decoration: none; font-size: 14px; }
nav a:hover { color: var(--accent); }
section { padding: 30px 0 6px; scroll-margin-top: 36px; }
h2 { margin: 0 0 10px; font-size: 20px; font-weight: 650; }
h3 { margin: 22px 0 6px; font-size: 15px; font-weight: 650; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 78ch; }
.soft, figcaption span { color: var(--soft); font-weight: 400; }
.cards { display: flex; flex-wrap: wrap; gap: 1px; margin: 18px 0;
  background: var(--line); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.cards div { flex: 1 1 155px; background: var(--page); padding: 12px 16px; }
.cards dt { color: var(--soft); font-size: 13px; }
.cards dd { margin: 0; font-size: 21px; font-weight: 600; line-height: 1.3; }
.cards small { display: block; color: var(--soft); font-size: 13px; font-weight: 400; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 6px 0 6px 16px; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; font-size: 13px; line-height: 1.3; vertical-align: bottom;
  white-space: pre; }
th:first-child, td:first-child { padding-left: 0; }
th.word, td.word { text-align: left; white-space: normal; overflow-wrap: break-word; max-width: 40ch; }
td.word:last-child { max-width: 60ch; }
td:first-child { font-weight: 600; }
table.pairs { width: auto; } table.pairs td:first-child { font-weight: 400; color: var(--soft); padding-right: 12px; }
.missing { border-left: 3px solid #e69f00; background: var(--notice); padding: 10px 16px; margin: 16px 0;
  font-size: 14px; }
.missing ul { margin: 4px 0 0; padding-left: 18px; }
.none { color: var(--soft); background: var(--panel); padding: 10px 16px; border-radius: 6px; }
.plots { display: grid; gap: 18px 28px; margin: 10px 0 18px; }
.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.three { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.flow { display: flex; flex-wrap: wrap; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
.three figcaption { min-height: 2.8em; } figcaption > span { display: inline-block; }
.three figcaption > span { display: block; font-size: 12.5px; }
figcaption { font-size: 13.5px; font-weight: 600; margin-bottom: 2px; line-height: 1.4; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13.5px; margin: 8px 0; overflow-wrap: anywhere; }
.legend svg { display: inline-block; width: 28px; height: 10px; margin-right: 6px; flex: none; }
.legend span { display: inline-flex; align-items: center; }
.table { max-width: 1092px; margin: 8px auto; }
.element:hover rect { stroke: var(--ink); stroke-width: 1.5; }
details { margin: 10px 0; border: 1px solid var(--line); border-radius: 6px; }
summary { cursor: pointer; padding: 8px 14px; font-size: 14px; font-weight: 500; }
details > div, details > pre { margin: 0; padding: 4px 14px 14px; }
pre { font: 13px/1.45 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: 13px; border-top: 1px solid var(--line); margin-top: 36px;
  padding: 14px 0 40px; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --page: #14181e; --bar: rgba(20,24,30,.96); --ink: #e4e8ee; --soft: #9aa5b4;
    --line: #2d3540; --panel: #1b2129; --accent: #56b4e9; --notice: #2a2415; }
  /* Plots carry their own colours, chosen for white paper. */
  svg :is([style*="fill: #ffffff"], [style*="fill: #eef0f3"]) { fill: #1b2129 !important; }
  svg :is([style*="fill: #3c4654"], [style*="fill: #000000"], [fill="#3c4654"]) { fill: #c3cbd6 !important; }
  svg [style*="fill: #10151d"] { fill: #e4e8ee !important; }
  svg text:not([style*="fill"]):not([fill]):not(.element text) { fill: #c3cbd6; }
  svg [style*="stroke: #e3e7ec"] { stroke: #2d3540 !important; }
  svg [style*="stroke: #ffffff"] { stroke: #14181e !important; }
  svg :is([style*="stroke: #10151d"], [stroke="#10151d"]) { stroke: #e4e8ee !important; }
  svg :is([style*="stroke: #0072b2"], [stroke="#0072b2"]) { stroke: #4aa8e0 !important; }
  svg [style*="fill: #0072b2"] { fill: #4aa8e0 !important; }
  svg[aria-label^="parity-"] image { filter: brightness(1.7); }
  .element[fill="#b3bac4"] { fill: #66717f; } .element rect[fill="#f4f5f7"] { fill: #1f262f; }
}
@media screen and (max-width: 760px) { .two, .three { grid-template-columns: minmax(0, 1fr); } }
@media print {
  @page { margin: 14mm; }
  body { font-size: 10.5pt; } nav { display: none; } header { padding-top: 0; } main, header > div { padding: 0; }
  section { padding-top: 14px; } h2, h3, .legend { break-after: avoid; } tr, .cards, .missing { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def render_page(run: Run) -> str:
    """The whole report as the text of an HTML file that refers to nothing outside itself."""
    parts: Sequence[Section] = (
        sections.summary(run),
        sections.learning(run),
        sections.parity(run),
        sections.elements(run),
        *physics_sections(run),
        sections.experts(run),
        speed(run),
        sections.data(run),
        sections.configuration(run),
        sections.environment(run),
    )
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            # The browser itself sees to it that nothing is fetched or run.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
            'img-src data:">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(run.name)} – training report</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<header><div><h1>{escape(run.name)}</h1><p>{escape(sections.state_of(run))}</p></div></header>",
            _navigation(parts),
            "<main>",
            *(f'<section id="{part.name}">\n<h2>{escape(part.title)}</h2>\n{part.body}\n</section>' for part in parts),
            "<footer>Units: energies eV per atom, forces eV/Å by component, stress eV/Å³ (tension is positive), "
            "magnetic moments μB; m stands for thousandths.</footer>",
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _navigation(parts: Iterable[Section]) -> str:
    links = "".join(f'<a href="#{part.name}">{escape(part.title)}</a>' for part in parts)
    return f"<nav><div>{links}</div></nav>"
