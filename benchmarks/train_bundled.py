"""How long the default training takes, and how good is what comes out. Arguments are settings (run.max_steps=200)."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from janus_train import load_config, train
from janus_train.recipes.matris import matris_recipe


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        directory = train(load_config(None, [*sys.argv[1:], f"run.dir={Path(folder) / 'run'}"]), matris_recipe)
        seconds = time.perf_counter() - began
        tasks = json.loads((directory / "evaluation.json").read_text())["tasks"]
        last = [json.loads(line) for line in (directory / "metrics.jsonl").open() if '"train"' in line][-1]
    print(json.dumps({
        "minutes": seconds / 60, "cores": os.cpu_count(), "edges_per_s": last["edges_per_s"],
        "tasks": {task: {k: e[k] for k in ("energy_mae", "forces_mae", "forces_mae_zero", "stress_mae")}
                  for task, e in tasks.items()},
        "zero_over_model": {task: e["forces_mae_zero"] / e["forces_mae"] for task, e in tasks.items()},
    }))  # fmt: skip


if __name__ == "__main__":
    main()
