"""The report of a training run: one HTML file that shows what was learnt, how well, how fast and from what.

Importing this costs next to nothing; matplotlib is imported when a report is built.
"""

from __future__ import annotations

from pathlib import Path

from janus_train.report.page import render_page
from janus_train.report.read import read_run

__all__ = ["build_report"]


def build_report(run_directory: Path) -> Path:
    """Writes report.html into a run directory from the files that are there, and returns its path.

    The file needs no other file and no network. The same files give the same bytes. A run that stopped early has fewer
    files, and a report that says what is missing.

    Raises:
        NotADirectoryError: there is no such directory.
    """
    if not run_directory.is_dir():
        raise NotADirectoryError(f"no run directory at {run_directory}; give the directory that 'train' printed")
    page = render_page(read_run(run_directory))
    report = run_directory / "report.html"
    partial = run_directory / "report.html.partial"
    # JSON may hold half a surrogate pair, which no encoding can write.
    partial.write_bytes(page.encode("utf-8", errors="replace"))
    partial.replace(report)
    return report
