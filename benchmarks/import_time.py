"""What importing each package costs, in times of importing torch: medians of fresh processes, taken in turn."""

import json
import statistics
import subprocess
import sys
import time

MODULES = ("torch", "janus_comm", "janus_moe", "janus_graph", "matris_model", "janus_train", "janus_train.run")
ROUNDS = 7


def seconds(module: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - began


def main() -> None:
    for module in MODULES:
        seconds(module)  # bytecode and page cache
    times: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(ROUNDS):
        for module in MODULES:
            times[module].append(seconds(module))
    medians = {module: statistics.median(values) for module, values in times.items()}
    print(json.dumps({"seconds": medians, "ratio_to_torch": {m: t / medians["torch"] for m, t in medians.items()}}))


if __name__ == "__main__":
    main()
