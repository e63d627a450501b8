"""The report of a run: one file, whole whatever is missing, the same for the same run."""

import html
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_train.report import build_report
from janus_train.report.periodic_table import ATOMIC_NUMBERS, SYMBOLS, place_of
from janus_train.report.plots import Curve, draw_curves, draw_experts, draw_parity, parts_of, style_of
from janus_train.report.quantities import as_number, duration, on_axis, ratio, three_figures
from janus_train.report.read import ExpertLayer, Run, parse_metrics, read_run
from janus_train.report.speed import sent_in_a_step
from report_run import ELEMENTS, FILES, errors_at, train_line, write_run


class Page(HTMLParser):
    """What a browser sees: tags with their attributes, and the text between them."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "nano-001")


@pytest.fixture(scope="module")
def report(run_directory: Path) -> str:
    return build_report(run_directory).read_text(encoding="utf-8")


def test_report_stands_in_the_run_directory_and_leaves_nothing_else_there(run_directory, report):
    assert {path.name for path in run_directory.iterdir()} == {*FILES, "report.html"}


def test_report_refers_to_nothing_outside_itself(report):
    page = Page(report)
    for name in ("src", "href", "xlink:href", "data", "srcset", "poster", "action"):
        assert all(value.startswith(("#", "data:")) for value in page.attributes(name))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    assert not re.search(r"@import|url\((?!['\"]?(#|data:))", report)
    assert "http://" not in report
    assert "https://" not in report


def test_tags_are_closed_in_order(report):
    assert Page(report).open == []


def test_names_inside_the_page_are_unique_and_every_reference_has_its_target(report):
    page = Page(report)
    names = page.attributes("id")
    assert len(names) == len(set(names))
    links = [value[1:] for name in ("href", "xlink:href") for value in page.attributes(name) if value[0] == "#"]
    assert set(links) | set(re.findall(r"url\(#([^)]+)\)", report)) <= set(names)


def test_report_is_small(report):
    assert len(report.encode()) < 1_200_000


def test_every_task_and_every_element_with_errors_is_in_the_report(report):
    text = " ".join(Page(report).text)
    for task, symbols in ELEMENTS.items():
        assert task in text
        for symbol in symbols:
            assert re.search(rf"{symbol}: force MAE [\d.]+ meV/Å over [\d,]+ atoms", text)


def test_final_errors_are_shown_in_thousandths(run_directory, report):
    evaluation = json.loads((run_directory / "evaluation.json").read_text())
    for errors in evaluation["tasks"].values():
        shown = [f">{three_figures(1000 * errors[name])}<" for name in ("energy_mae", "forces_mae", "forces_mae_zero")]
        assert all(number in report for number in shown)
        assert f">{three_figures(errors['forces_mae_zero'] / errors['forces_mae'])} ×<" in report


def test_a_plot_is_drawn_for_each_parity_array_and_each_expert_layer(run_directory, report):
    with np.load(run_directory / "parity.npz") as arrays:
        assert len(re.findall(r'aria-label="parity-', report)) == len(arrays.files)
    layers = json.loads((run_directory / "experts.json").read_text())["layers"]
    assert len(re.findall(r'aria-label="experts-', report)) == len(layers)
    assert all(layer["name"] in report for layer in layers)


def test_the_expert_that_counts_most_for_each_element_stands_on_a_periodic_table(run_directory, report):
    (layer, *_) = json.loads((run_directory / "experts.json").read_text())["layers"]
    tables = re.findall(r'aria-label="periodic table of groups">(.*?)</svg>', report)
    assert len(tables) == 4  # of the layers that are shown at once
    for symbol, weights in zip(layer["symbols"], layer["weights"], strict=True):
        most = max(range(len(weights)), key=weights.__getitem__)
        assert re.search(rf"<title>{symbol}: expert {most} \d+ %.*?>{symbol}</text>.*?>{most}</text>", tables[0])


def test_statistics_of_experts_are_shown_as_they_were_written(run_directory, report):
    (layer, *_) = json.loads((run_directory / "experts.json").read_text())["layers"]
    said = layer["statistics"]
    assert f">{said['dead']}<" in report
    assert f">{said['max_over_mean']} ×<" in report
    assert f">{three_figures(100 * said['load_entropy'])} %<" in report
    assert f">{three_figures(100 * said['gate_entropy'])} %<" in report
    assert f">{said['effective_experts']}<" in report


def test_the_same_run_gives_the_same_bytes_in_another_process_and_under_other_settings(tmp_path, run_directory, report):
    copy = tmp_path / "elsewhere" / run_directory.name
    shutil.copytree(run_directory, copy)
    # To look the backend up is to choose one, which imports pyplot.
    program = (
        "import sys, pathlib, matplotlib\n"
        "matplotlib.rcParams['font.size'] = 31\n"
        "settings = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != 'backend'}\n"
        "before = settings()\n"
        "from janus_train.report import build_report\n"
        "build_report(pathlib.Path(sys.argv[1]))\n"
        "assert settings() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(copy)], check=True)
    assert (copy / "report.html").read_text(encoding="utf-8") == report


def test_importing_the_report_imports_no_matplotlib_and_no_torch():
    program = "import sys, janus_train.report; sys.exit(bool({'matplotlib', 'torch', 'ase'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_empty_directory_gives_a_report_that_names_every_missing_file(tmp_path):
    page = Page(build_report(tmp_path).read_text())
    text = " ".join(page.text)
    assert all(f"{name} is not there" in text for name in FILES)
    assert page.open == []


SPOILT = [b"", b"{", b"[]", b"\xff\xfe\x00", b'{"tasks": 3, "elements": [], "layers": {}}']


@pytest.mark.parametrize("content", SPOILT)
def test_a_spoilt_file_costs_only_what_it_holds(tmp_path, run_directory, content):
    for name in FILES:
        shutil.copy(run_directory / name, tmp_path)
    whole = read_run(tmp_path)
    holds = {"metrics.jsonl": ("train", "val"), "experts.json": ("layers",)}
    for name in FILES:
        (tmp_path / name).write_bytes(content)
        run = read_run(tmp_path)
        lost = holds.get(name, (name.partition(".")[0],))
        for field in ("train", "val", "evaluation", "layers", "config", "environment", "data"):
            assert field in lost or repr(getattr(run, field)) == repr(getattr(whole, field))
        assert (name == "parity.npz") == (not run.parity)
        shutil.copy(run_directory / name, tmp_path)


@pytest.mark.parametrize("content", SPOILT)
def test_a_report_of_nothing_but_spoilt_files_is_whole(tmp_path, content):
    for name in FILES:
        (tmp_path / name).write_bytes(content)
    page = Page(build_report(tmp_path).read_text())
    assert page.open == []
    assert {"summary", "learning", "parity", "elements", "experts", "speed", "data"} <= set(page.attributes("id"))


@pytest.mark.parametrize("name", ["parity.npz", "experts.json"])
def test_a_file_cut_in_the_middle_is_named(tmp_path, run_directory, name):
    content = (run_directory / name).read_bytes()
    for length in range(1, len(content) - 1, len(content) // 9):
        (tmp_path / name).write_bytes(content[:length])
        assert any(remark.startswith(f"{name} could not be read") for remark in read_run(tmp_path).remarks)


@given(st.data())
def test_a_log_cut_anywhere_keeps_all_whole_lines(data):
    random = np.random.default_rng(0)
    count = data.draw(st.integers(0, 5))
    whole = "".join(json.dumps(train_line(10 * (i + 1), 100, random)) + "\n" for i in range(count))
    cut = data.draw(st.integers(0, len(whole)))
    train, val, unreadable = parse_metrics(whole[:cut])
    complete = whole[:cut].count("\n")
    # A cut between the last character of a line and its end leaves the line whole.
    assert [line["step"] for line in train][:complete] == [10 * (i + 1) for i in range(complete)]
    assert len(train) <= complete + 1
    assert (val, unreadable) == ([], 0)


def test_lines_that_are_no_steps_are_counted_and_left_out(tmp_path):
    good = '{"kind": "train", "step": 1, "loss": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(good + '7\n{"kind": "odd"}\n{"kind": "val", "step": null}\n{]\n' + good)
    run = read_run(tmp_path)
    assert len(run.train) == 2
    assert "metrics.jsonl: 4 line(s) could not be read and are left out" in run.remarks


def test_a_run_without_evaluation_shows_the_last_validation(tmp_path, run_directory):
    shutil.copy(run_directory / "metrics.jsonl", tmp_path)
    page = build_report(tmp_path).read_text()
    last = read_run(tmp_path).val[-1]["tasks"]
    assert "Errors of the last validation logged" in page
    assert all(f">{three_figures(1000 * errors['forces_mae'])}<" in page for errors in last.values())


def test_numbers_that_are_none_or_not_finite_are_left_out_and_said(tmp_path):
    lines = [
        {"kind": "train", "step": 1, "loss": None, "lr": "high", "seconds": None},
        {"kind": "train", "step": 2, "loss": math.nan, "grad_norm": math.inf, "edges_per_s": 10**400},
        {"kind": "val", "step": 2, "loss": None, "tasks": {"a": {"forces_mae": math.nan}, "b": None}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = build_report(tmp_path).read_text()
    assert "2 of 2 logged steps had no finite loss" in page
    assert "nan" not in " ".join(Page(page).text).lower().split()


NASTY = ["<b>bold</b>", "a&b", '"><script>alert(1)</script>', "$\\frac{$", "_hidden", "\ud800", "", "日本語"]


def test_names_of_tasks_layers_and_symbols_cannot_become_markup(tmp_path):
    directory = tmp_path / "<i>run</i>"
    errors = errors_at("ionic", 100, np.random.default_rng(0))
    tasks = dict.fromkeys(NASTY, errors)
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text(json.dumps({"kind": "val", "step": 9, "loss": 1, "tasks": tasks}))
    (directory / "evaluation.json").write_text(
        json.dumps({"step": 20, "tasks": tasks, "elements": {name: {"atoms": 1, "forces_mae": 0.1} for name in NASTY}})
    )
    pairs = np.array([[0.0, 0.1], [1.0, 0.8]])
    np.savez(directory / "parity.npz", **{f"energy/{name}": pairs for name in NASTY[:2]})
    layer = {"symbols": NASTY[:2], "weights": [[0.5, 0.5], [1, 0]], "load": [3, 0]}
    (directory / "experts.json").write_text(json.dumps({"layers": [layer | {"name": name} for name in NASTY[:3]]}))
    (directory / "data.json").write_text(
        json.dumps({"tasks": {name: {"train": 1, "elements": NASTY} for name in NASTY}, "fingerprint": "<b>",
                    "warnings": NASTY})
    )  # fmt: skip
    (directory / "environment.json").write_text(json.dumps(dict.fromkeys(NASTY, "<b>")))
    (directory / "config.yaml").write_text("</pre><b>\n")
    content = build_report(directory).read_text(encoding="utf-8")
    page = Page(content)
    assert page.open == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"b", "i", "script"})
    assert all(html.escape(name) in content for name in NASTY if name != "\ud800")


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_log_of_hardly_any_steps_is_drawn(tmp_path, run_directory, steps):
    lines = (run_directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:steps]))
    page = Page(build_report(tmp_path).read_text())
    assert page.open == []
    assert ("training-loss" in page.attributes("aria-label")) == (steps > 0)


def test_a_hundred_times_as_many_steps_hardly_make_a_plot_larger():
    sizes = []
    for steps in (1000, 100_000):
        x = np.arange(1.0, steps + 1)
        sizes.append(len(draw_curves("loss", [Curve(x, 2 + np.sin(x), style_of(0))], "step", log=True)))
    assert sizes[1] < 1.2 * sizes[0]


def test_no_point_to_draw_means_no_plot():
    nothing = [Curve(np.arange(3.0), np.array([0.0, -1.0, math.nan]), style_of(0))]
    assert draw_curves("loss", nothing, "step", log=True) == ""
    assert draw_curves("loss", [], "step") == ""
    assert draw_curves("loss", nothing, "step") != ""


@pytest.mark.parametrize("values", [[0.0, 0.0], [-3e-300, 5e-324], [1e30, -1e30], [7.0, 7.0]])
def test_parity_of_numbers_of_any_size_can_be_drawn(values):
    pairs = np.array([values, values[::-1]])
    assert draw_parity("parity", pairs[:1], 1.0, "eV/Å").startswith("<svg")
    assert draw_parity("parity", pairs, 1.0, "eV/Å").startswith("<svg")


@given(st.lists(st.floats(-1e30, 1e30), max_size=4), st.booleans())
def test_a_curve_of_numbers_of_any_size_can_be_drawn(values, log):
    y = np.array(values)
    svg = draw_curves("curve", [Curve(np.arange(float(len(y))), y, style_of(0))], "step", log=log)
    assert svg.startswith("<svg") == bool(((y >= 1e-30) | (not log)).any())


def test_a_large_map_of_experts_names_every_element_and_every_unused_expert():
    weights = np.ones((89, 64)) * (np.arange(64) % 16 != 3)
    svg = draw_experts("map", ExpertLayer("block 0", list(SYMBOLS[:89]), weights, weights.sum(axis=0), {}))
    texts = re.findall(r">([^<>]+)</text>", svg)
    assert set(SYMBOLS[:89]) <= set(texts)
    assert texts.count("unused") == 4


def test_expert_layers_that_do_not_fit_together_are_named_and_left_out(tmp_path):
    layers = [
        {"name": "good", "symbols": ["H"], "weights": [[0.25, 0.75]], "load": [0, 0]},
        {"name": "short", "symbols": ["H", "C"], "weights": [[0.25, 0.75]], "load": [1, 2]},
        {"name": "ragged", "symbols": ["H", "C"], "weights": [[0.25, 0.75], [1]], "load": [1, 2]},
        {"name": "bare"},
        None,
    ]
    (tmp_path / "experts.json").write_text(json.dumps({"layers": layers}))
    run = read_run(tmp_path)
    assert [layer.name for layer in run.layers] == ["good"]
    assert sum(remark.startswith("experts.json: layer") for remark in run.remarks) == 4
    assert "good" in build_report(tmp_path).read_text()


def test_there_is_no_report_of_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(NotADirectoryError, match="no run directory"):
        build_report(tmp_path / "nowhere")


def test_every_element_has_a_place_of_its_own_in_the_group_of_its_kind():
    assert len(SYMBOLS) == 118
    assert len({place_of(z) for z in range(1, 119)}) == 118
    groups = {
        0: "H Li Na K Rb Cs Fr", 1: "Be Mg Ca Sr Ba Ra", 2: "Sc Y Lu Lr", 3: "Ti Zr Hf Rf", 10: "Cu Ag Au Rg",
        12: "B Al Ga In Tl Nh", 13: "C Si Ge Sn Pb Fl", 16: "F Cl Br I At Ts", 17: "He Ne Ar Kr Xe Rn Og",
    }  # fmt: skip
    for group, symbols in groups.items():
        places = [place_of(ATOMIC_NUMBERS[symbol]) for symbol in symbols.split()]
        assert {column for _, column in places} == {group}
        assert [row for row, _ in places] == sorted({row for row, _ in places})
    assert place_of(ATOMIC_NUMBERS["La"]) == (7, 2)
    assert place_of(ATOMIC_NUMBERS["No"]) == (8, 15)
    for z in (0, 119):
        with pytest.raises(ValueError, match="not between"):
            place_of(z)


def test_symbols_are_those_that_ase_knows():
    from ase.data import chemical_symbols

    assert list(SYMBOLS) == chemical_symbols[1:]


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.one_of(st.floats(-9, 9), st.just(math.nan))), max_size=40),
    st.integers(1, 12),
)
def test_parts_of_a_curve_bound_every_finite_point(points, most):
    x, y = np.array([*points, (0.0, math.nan)]).T
    parts = parts_of(x, y, most)
    finite = y[np.isfinite(y)]
    assert parts.shape[1] <= most
    assert parts.shape[1] == len(finite) or len(finite) > most
    assert (parts[1] <= parts[2]).all()
    assert (parts[2] <= parts[3]).all()
    if len(finite):
        assert parts[1].min() == finite.min()
        assert parts[3].max() == finite.max()


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_number_is_written_to_three_figures_or_not_at_all(value):
    text = three_figures(value)
    if not abs(value) <= 1e30:
        assert text == "–"
        return
    plain = text.replace(",", "").replace("−", "-")
    if "10" in plain and any(digit in plain for digit in "⁰¹²³⁴⁵⁶⁷⁸⁹"):
        mantissa, power = ("1", plain[2:]) if "×" not in plain else plain.split("×10")
        plain = f"{mantissa}e{power.translate(str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789'))}"
    assert float(plain) == pytest.approx(value, rel=5.1e-3, abs=5e-324)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (-2.5, "−2.5"), (200, "200"), (20000, "20k"), (3e-5, "3×10⁻⁵"), (1e-5, "10⁻⁵"),
     (4.1e7, "41M"), (1e16, "10¹⁶")],
)  # fmt: skip
def test_ticks_are_written_for_people(value, text):
    assert on_axis(value) == text


def test_times_and_ratios_are_written_for_people():
    assert [duration(s) for s in (0.5, 14, 200, 7500, None)] == ["0.5 s", "14 s", "3 min 20 s", "2 h 5 min", "–"]
    assert [ratio(0.1, 0.73), ratio(0, 1), ratio(None, 1)] == ["7.30 ×", "–", "–"]
    assert [math.isnan(as_number(x)) for x in (True, "1", 10**400, 1e31, -math.inf, 3)] == [True] * 5 + [False]


EMPTY = Run("empty", [], [], {}, {}, [], "", {}, {}, {}, [])
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# Notes what a person would stumble over: how wide the page is, how large each section and each plot of it is, and how
# well the text stands out from what is behind it.
MEASURE = """
const luminance = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
  .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
  .reduce((sum, x, i) => sum + [0.2126, 0.7152, 0.0722][i] * x, 0)
const box = element => { const r = element.getBoundingClientRect(); return [Math.round(r.width), Math.round(r.height)] }
addEventListener('load', () => {
  const page = luminance(getComputedStyle(document.body).backgroundColor)
  const seen = document.documentElement
  const closed = element => element.closest('details:not([open])')
  const contrast = (text, of) => { const ink = luminance(getComputedStyle(text)[of]);
    return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05) }
  const plots = [...document.querySelectorAll('figure svg')].filter(svg => !closed(svg))
  document.title = JSON.stringify({
    page, width: seen.scrollWidth, of: seen.clientWidth,
    sections: Object.fromEntries([...document.querySelectorAll('section')].map(s => [s.id, box(s)])),
    plots: plots.map(box),
    words: Math.min(...[...document.querySelectorAll('p, h1, h2, h3, td, dd, dt, figcaption')]
      .map(e => contrast(e, 'color'))),
    ticks: Math.min(...plots.flatMap(svg => [...svg.querySelectorAll('text')]).map(e => contrast(e, 'fill'))),
  })
})
"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_lays_the_report_out_in_light_and_dark_without_a_complaint(scheme: str, tmp_path, report):
    assert CHROMIUM is not None
    # The page forbids scripts; its copy that measures itself does not.
    copy = tmp_path / "measured.html"
    measured = re.sub(r"<meta http-equiv[^>]*>", "", report).replace("</body>", f"<script>{MEASURE}</script></body>")
    copy.write_text(measured, encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--enable-logging=stderr", f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
             f"--user-data-dir={profile}", "--window-size=900,1200", "--dump-dom", copy.as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert seen["width"] <= seen["of"]
    assert set(seen["sections"]) >= {"summary", "learning", "parity", "elements", "experts", "speed", "data"}
    assert all(width > 400 and height > 40 for width, height in seen["sections"].values())
    assert all(width > 100 and height > 60 for width, height in seen["plots"])
    assert (seen["page"] < 0.05) == (scheme == "dark")
    # Contrast of text, as the Web Content Accessibility Guidelines want it: 4.5, and 3 for large type.
    assert seen["words"] >= 4.5
    assert seen["ticks"] >= 3


def test_what_must_not_be_overlooked_is_said_first(tmp_path, run_directory):
    lines = (run_directory / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    notice = "validation forces mae has not improved since step 900, in 5 validations"
    watch = {"metric": "forces_mae", "value": 0.0123, "better_step": 900, "no_better": 5, "notice": notice}
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(last | {"watch": watch})]))
    text = " ".join(Page(build_report(tmp_path).read_text()).text)
    assert text.index(notice) < text.index("Errors of the last validation")
    assert "best validation forces mae" in text
    assert "0.0123" in text


def test_errors_of_the_weights_that_a_run_started_from_are_shown_beside_the_final_ones(tmp_path, run_directory):
    lines = (run_directory / "metrics.jsonl").read_text()
    start = {
        "kind": "val",
        "step": 0,
        "loss": 7.0,
        "tasks": {"metals": errors_at("metals", 0, np.random.default_rng(1))},
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(start) + "\n" + lines)
    run, page = read_run(tmp_path), build_report(tmp_path).read_text()
    assert run.start == start["tasks"]
    assert "the weights that the run started from" in page
    assert f">{three_figures(1000 * start['tasks']['metals']['forces_mae'])}<" in page
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert "the weights that the run started from" not in build_report(tmp_path).read_text()


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5), st.booleans()), max_size=6))
def test_bytes_of_a_step_are_what_was_sent_since_the_last_line_whenever_the_count_began_anew(steps):
    lines, step, total = [{"kind": "train", "step": 0, "bytes_sent": {"halo": 0}}], 0, 0
    expected = []
    for more, sent, again in steps:
        fresh = again and total > 0 and sent * more < total  # a restart that the log can tell
        step, total = step + more, sent * more + (0 if fresh else total)
        lines.append({"kind": "train", "step": step, "bytes_sent": {"halo": total}})
        expected.append(math.nan if fresh else sent)
    run = replace(EMPTY, train=lines)
    found = sent_in_a_step(run).get("halo", np.where(np.isnan(expected), np.nan, 0.0))
    np.testing.assert_allclose(found, expected)
