"""The directory of a run: which one it is, and what is written into it about the run."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from janus_comm import Communicator, agree
from janus_train.config import Config, load_config, save_config
from janus_train.data.load import DataSet, coverage, data_fingerprint
from janus_train.data.reference_table import about_references
from janus_train.data.statistics import Statistics
from janus_train.failure import UserError

_PACKAGES = (
    "janus-train", "janus-comm", "janus-graph", "janus-moe", "matris-model", "torch", "numpy", "ase", "vesin",
)  # fmt: skip
_HOLDS_A_RUN = ("config.yaml", "checkpoints", "model.safetensors")


@dataclass(frozen=True)
class Job:
    """What a scheduler or launcher runs this process for.

    Attributes:
        name: the same whenever it starts the job again, and of no other job; None without scheduler and launcher.
        started_again: whether it has started it before.
    """

    name: str | None
    started_again: bool


def job_of(environment: Mapping[str, str]) -> Job:
    """The job that SLURM or torchrun tell of in the environment; SLURM's, where one starts the other."""
    again = any(int(environment.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    if "SLURM_JOB_ID" in environment:
        return Job(f"slurm {environment['SLURM_JOB_ID']}", again)
    if "TORCHELASTIC_RUN_ID" in environment:
        run = environment["TORCHELASTIC_RUN_ID"]
        # Without --rdzv-id every torchrun has the same name; the process that starts ranks again is always the same.
        own = f"{socket.gethostname()} {os.getppid()}" if run == "none" else ""
        return Job(f"torchrun {run} {own}".strip(), again)
    return Job(None, False)


def choose_directory(world: Communicator, config: Config, job: Job) -> tuple[Path, bool]:
    """The directory of a run that begins, on all ranks, and whether this very job has begun it before.

    A run that is there already is left alone, unless this is the same job, which was started again, with the same
    configuration.

    Raises:
        UserError: on every rank, where another run is there, or nothing can be made.
    """
    error: UserError | None = None
    chosen: tuple[Path, bool] | None = None
    if world.rank == 0:
        try:
            chosen = _choose(config, job)
            chosen[0].mkdir(parents=True, exist_ok=True)
        except OSError as raised:
            error = UserError(f"cannot make the run directory {config.run.dir}: {raised.strerror}; choose another "
                              "run.dir")  # fmt: skip
        except UserError as raised:
            error = raised
    agree(world, error)
    everywhere = world.gather_object(chosen)[0]
    assert everywhere is not None
    return everywhere


def _choose(config: Config, job: Job) -> tuple[Path, bool]:
    parent, preset = Path("runs"), config.model.preset
    taken = [path for path in parent.glob(f"{preset}-*") if re.fullmatch(rf"{re.escape(preset)}-(\d+)", path.name)]
    if config.run.dir is None:
        begun = [path for path in taken if _was_begun_by(path, config, job)]
        numbers = [int(path.name.rpartition("-")[2]) for path in taken]
        return (begun[-1], True) if begun else (parent / f"{preset}-{max(numbers, default=0) + 1:03d}", False)
    if not any((config.run.dir / name).exists() for name in _HOLDS_A_RUN):
        return config.run.dir, False
    if _was_begun_by(config.run.dir, config, job):
        return config.run.dir, True
    raise UserError(
        f"{config.run.dir} already holds a run; go on with 'janus-train resume {config.run.dir}', or choose another "
        "run.dir"
    )


def _was_begun_by(directory: Path, config: Config, job: Job) -> bool:
    """Whether the run there was begun by this job before it was started again, with this configuration."""
    if not job.started_again:
        return False
    try:
        by = json.loads((directory / "environment.json").read_text()).get("job")
        saved = load_config(directory / "config.yaml")
    except (OSError, ValueError, UserError):
        return False
    return by is not None and by == job.name and _but_for_place(saved) == _but_for_place(config)


def _but_for_place(config: Config) -> dict[str, Any]:
    content = config.model_dump(mode="json")
    return content | {"run": {**content["run"], "dir": None}}


def write_about(directory: Path, config: Config, job: Job, data: tuple[DataSet, Statistics] | None) -> None:
    """Writes where the run computes, its data (None leaves what is there), and last its configuration.

    Each file is whole whenever the process is killed, and without the last one there is no run.
    """
    _write_json(directory / "environment.json", {**_environment(), "job": job.name})
    if data is not None:
        _write_json(directory / "data.json", _about_data(*data))
    in_place = config.model_copy(update={"run": config.run.model_copy(update={"dir": directory})})
    save_config(in_place, partial := directory / ".config.yaml.partial")
    partial.replace(directory / "config.yaml")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def _about_data(data: DataSet, statistics: Statistics) -> dict[str, Any]:
    return {
        "tasks": coverage(data),
        "fingerprint": data_fingerprint(data),
        "references": {
            task: {str(z): row[z] for z in np.flatnonzero(row)}
            for task, row in zip(data.tasks, statistics.references, strict=True)
        },
        "atoms": {str(z): int(statistics.atoms[z]) for z in np.flatnonzero(statistics.atoms)},
        "scales": dict(zip(data.tasks, statistics.scales.tolist(), strict=True)),
        "reference_residuals": dict(zip(data.tasks, statistics.residuals.tolist(), strict=True)),
        "reference_fits": about_references(statistics, data.tasks),
        "warnings": statistics.warnings,
    }


def statistics_of_run(saved: Mapping[str, Any], tasks: Sequence[str], now: Statistics) -> Statistics:
    """The references and scales that a run began with, as its `data.json` has them.

    Args:
        saved: what `data.json` holds.
        tasks: of the run, in the order of their indices.
        now: what the data say today of everything else.
    """
    references = np.zeros_like(now.references)
    for index, task in enumerate(tasks):
        for z, energy in saved["references"][task].items():
            references[index, int(z)] = energy
    scales, residuals = (
        np.array([saved[name][task] for task in tasks], dtype=np.float64) for name in ("scales", "reference_residuals")
    )
    return replace(now, references=references, scales=scales, residuals=residuals)


def _environment() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **versions,
    }
