"""What a model needs of each of the ranks that share it: resident memory of a run, beside the plan.

    python benchmarks/large_model.py --data few.extxyz [--preset S] [--ranks 4] [SETTINGS ...]

Runs `janus-train train` over so many ranks of this machine for a few steps, one structure or so a pass, and watches
their resident memory all the while. Beside it: what the memory plan of the run said, and what one process that has the
whole model would need for parameters, gradients and two moments. What is freed goes back to the system at once.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SETTINGS = (
    "optim.ema_decay=0", "run.checkpoint_in_background=false", "run.log_every=1", "run.timeout=3600",
    "optim.warmup_steps=1", "optim.lr=1e-4", "data.batch_edges=3000", "data.pass_edges=400",
)  # fmt: skip
_PLAN = re.compile(r"memory of a rank in the largest step: .*")


def resident(directory: Path) -> dict[int, int]:
    """Bytes resident now, of each rank of the run in this directory."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if f"run.dir={directory}".encode() not in command or b"torch.distributed.run" in command:
                continue
            environment = dict(
                pair.split(b"=", 1) for pair in (process / "environ").read_bytes().split(b"\0") if b"=" in pair
            )
            pages = int((process / "statm").read_text().split()[1])
            found[int(environment[b"RANK"])] = pages * os.sysconf("SC_PAGE_SIZE")
        except (OSError, KeyError, IndexError):
            continue  # it has just ended
    return found


class Watch(threading.Thread):
    """Looks at the ranks twice a second until told to stop.

    Attributes:
        most: of each rank, by what the run was doing; "together": of all ranks at one moment.
    """

    def __init__(self, directory: Path, steps: int) -> None:
        super().__init__(daemon=True)
        self._directory, self._steps, self._over = directory, steps, threading.Event()
        self.most: dict[str, dict[str, int]] = {}

    def run(self) -> None:
        while not self._over.wait(0.5):
            now = resident(self._directory)
            entry = self.most.setdefault(self._phase(), {"together": 0})
            for name, count in [
                *((f"rank {rank}", held) for rank, held in now.items()),
                ("together", sum(now.values())),
            ]:
                entry[name] = max(entry.get(name, 0), count)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _phase(self) -> str:
        log = self._directory / "metrics.jsonl"
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else [-1]
        return "saving" if max(steps, default=0) >= self._steps else "training" if steps != [-1] else "starting"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a few labelled structures")
    parser.add_argument("--preset", default="S")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    arguments, settings = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.ranks}",
            "-m", "janus_train", "train", f"data.train={arguments.data.resolve()}", f"model.preset={arguments.preset}",
            f"mesh.unit={arguments.ranks}", f"run.max_steps={arguments.steps}", *SETTINGS, *settings,
            f"run.dir={directory}",
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        watch = Watch(directory, arguments.steps)
        began = time.perf_counter()
        watch.start()
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        watch.stop()
        sys.exit(done.stdout) if done.returncode else None
        print(
            json.dumps(report(directory, watch.most, done.stdout) | {"seconds": time.perf_counter() - began}, indent=2)
        )


def report(directory: Path, most: dict[str, dict[str, int]], said: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
    parameters = int(re.search(r"([\d,]+) parameters", said)[1].replace(",", ""))  # type: ignore[index]
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "parameters": parameters,
        "whole_model_gb": 16 * parameters / 1e9,
        "plan": (_PLAN.search(said) or [None])[0],
        "resident_gb": {phase: {name: count / 1e9 for name, count in ranks.items()} for phase, ranks in most.items()},
        "losses": [line["loss"] for line in lines if line["kind"] == "train"],
        "structures_per_s": [line["structures_per_s"] for line in lines if line["kind"] == "train"],
        "checkpoint_gb": sum(f.stat().st_size for f in (directory / "checkpoints").rglob("*") if f.is_file()) / 1e9,
    }


if __name__ == "__main__":
    main()
