"""Known benchmarks, judged on the files that a user has, for any ASE calculator.

A benchmark is a function of a directory or file and a `Judge`, which asks the calculator and keeps what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from janus_train.benchmarking.discovery import judge_discovery
from janus_train.benchmarking.gmtkn55 import judge_gmtkn55
from janus_train.benchmarking.judge import Answers, Judge, Judgement
from janus_train.benchmarking.matcalc import judge_matcalc
from janus_train.benchmarking.wiggle150 import judge_wiggle150
from janus_train.benchmarking.x23 import judge_x23

__all__ = [
    "BENCHMARKS",
    "Answers",
    "Benchmark",
    "Judge",
    "Judgement",
    "judge_discovery",
    "judge_gmtkn55",
    "judge_matcalc",
    "judge_wiggle150",
    "judge_x23",
]

Benchmark = Callable[[Path, Judge], Judgement]
"""Judges a calculator on the files at a path."""

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "matbench-discovery": judge_discovery,
        "matcalc": judge_matcalc,
        "wiggle150": judge_wiggle150,
        "gmtkn55": judge_gmtkn55,
        "x23": judge_x23,
    }
)
"""By the name that `janus-train evaluate --benchmark` takes."""
