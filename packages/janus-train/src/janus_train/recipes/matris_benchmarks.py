"""Known benchmarks of a saved MatRIS-MoE, or of the published MatRIS."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch

from janus_train.benchmarking import BENCHMARKS, Answers, Judge, Judgement
from janus_train.failure import UserError
from janus_train.recipes.matris import open_matris
from matris_model import MatRISCalculator


def judge_model(
    model_path: Path,
    benchmark: str,
    data: Path,
    task: str | None = None,
    relax: bool | None = None,
    output: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Judgement:
    """Judges a saved model in float64, and writes what is found into `OUTPUT/BENCHMARK.json`.

    What the model says of each structure is kept in `OUTPUT/BENCHMARK.answers.jsonl`; the same command goes on there.

    Args:
        model_path: a run directory or a saved model.
        benchmark: one of `janus_train.benchmarking.BENCHMARKS`.
        data: the benchmark's files.
        task: whose reference energies to use, of a model with several.
        relax: whether to relax structures first; None for what the benchmark usually does.
        output: a directory; None for `benchmarks` in that of the model.
        say: told how it gets on.

    Raises:
        UserError: no such model, benchmark, task or files, or answers of another model there.
    """
    if benchmark not in BENCHMARKS:
        raise UserError(f"--benchmark {benchmark}: there are {', '.join(BENCHMARKS)}")
    if not data.exists():
        raise UserError(f"--data {data}: there is no such file or directory")
    try:
        calculator = MatRISCalculator(open_matris(model_path), task=task, dtype=torch.float64)
    except ValueError as error:
        raise UserError(f"{error}; choose with --task") from error
    home = output or (model_path if model_path.is_dir() else model_path.parent) / "benchmarks"
    about = {"benchmark": benchmark, "data": str(data.resolve()), "task": task, "relax": relax,
             "weights": _digest(calculator.model)}  # fmt: skip
    answers = Answers(home / f"{benchmark}.answers.jsonl", about)
    found = BENCHMARKS[benchmark](data, Judge(calculator, answers, relax, say))
    (home / f"{benchmark}.json").write_text(json.dumps(dataclasses.asdict(found), indent=2) + "\n")
    return found


def _digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
