"""janus-train data: sets of frames on disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_train.failure import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from janus_train.data.store import Conversion

app = typer.Typer(help="Sets of frames on disk.", no_args_is_help=True)

Workers = Annotated[int | None, typer.Option(help="processes; as many as there are cores where not given", min=1)]


@app.command()
def convert(
    sources: Annotated[list[str], typer.Argument(help="paths (or one YAML file), and settings of data.*")],
    output: Annotated[Path, typer.Option(help="directory of the store; new, or of a conversion that was killed")],
    workers: Workers = None,
    cutoff: Annotated[float | None, typer.Option(help="also count edges below this, Å", min=0.1)] = None,
    near_cutoff: Annotated[float | None, typer.Option(help="and near edges below this, Å", min=0.1)] = None,
) -> None:
    """Turn files of any kind into a store that training reads from disk. A killed conversion goes on where it was."""
    from janus_train.data.store import convert as convert_to_store

    conversion = _conversion(sources, cutoff, near_cutoff)
    with _progress() as bar:
        task = bar.add_task("converting", total=None)
        rows = 0

        def done(more: int, jobs: int) -> None:
            nonlocal rows
            rows += more
            bar.update(task, advance=1, total=jobs, description=f"{rows:,} frames")

        about = convert_to_store(conversion, output, workers or _cores(), done)
    print(
        f"{about['rows']:,} frames in {len(about['shards'])} shard(s) written to {output}; train on them with "
        f"data.train={output}"
    )


@app.command()
def measure(
    store: Annotated[Path, typer.Argument(help="directory of the store")],
    cutoff: Annotated[float, typer.Option(help="of a model, Å", min=0.1)],
    near_cutoff: Annotated[float, typer.Option(help="of a model, Å", min=0.1)],
    workers: Workers = None,
) -> None:
    """Count the edges of all frames of a store for other cutoffs, which training does else before its first step."""
    from janus_train.data.store import Store, measure_sizes, stored_sizes

    opened = Store(store)
    with _progress() as bar:
        task = bar.add_task("counting edges", total=len(opened))
        measure_sizes(opened, cutoff, near_cutoff, workers or _cores(), lambda rows: bar.update(task, advance=rows))
    sizes = stored_sizes(opened, cutoff, near_cutoff)
    assert sizes is not None
    print(f"{len(opened):,} frames have {int(sizes.edges.sum(dtype=int)):,} edges below {cutoff:g} Å")


def _conversion(sources: Sequence[str], cutoff: float | None, near_cutoff: float | None) -> Conversion:
    from janus_train.config import file_and_settings, load_config, with_data_files
    from janus_train.data.store import Conversion

    if (cutoff is None) != (near_cutoff is None):
        raise UserError("--cutoff and --near-cutoff belong together; give both, or neither to count edges later")
    data = load_config(*file_and_settings(with_data_files(sources))).data
    if data.train is None:
        raise UserError("nothing to convert; name files or directories, or a YAML file with data.train")
    return Conversion(
        tuple((source.path, data.keys_of(source), source.task or "") for source in data.train),
        None if cutoff is None or near_cutoff is None else (cutoff, near_cutoff),
    )


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        yield bar


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
