"""Where the time of a training step goes: graph, forward, inner backward, outer backward. Argument: a preset."""

import json
import os
import statistics
import sys
import time

import torch

from janus_train.config import DataConfig
from janus_train.data.batch import FrameSource, label_counts
from janus_train.data.batching import epoch_batches
from janus_train.data.frame import with_task_indices
from janus_train.data.load import bundled_frames
from janus_train.loss import loss_sums, weighted_loss
from matris_model import MatRISMoE

ROUNDS = 10
WEIGHTS = {"energy": 5.0, "forces": 5.0, "stress": 5.0}


def main() -> None:
    preset = sys.argv[1] if len(sys.argv) > 1 else "nano"
    bundled = bundled_frames()
    tasks = sorted({frame.task for frame in bundled})
    frames = with_task_indices(bundled, tasks)
    model = MatRISMoE.from_preset(preset, tasks=tuple(tasks)).float()
    source = FrameSource(frames, model.config.cutoff, model.config.near_cutoff)
    places = epoch_batches(source.edges, DataConfig().batch_edges, seed=0, epoch=0)[0].tolist()
    counts = label_counts([frames[place] for place in places])
    times: dict[str, list[float]] = {"graph": [], "forward": [], "energy_and_forces": [], "step": []}
    for _ in range(ROUNDS + 1):
        marks = [time.perf_counter()]
        batch = source.batch(places)
        assert batch is not None
        marks.append(time.perf_counter())
        with torch.no_grad():
            model(batch.graph, ("energy",))
        marks.append(time.perf_counter())
        found = model(batch.graph, tuple(WEIGHTS))
        marks.append(time.perf_counter())
        weighted_loss(loss_sums(found, batch), counts, WEIGHTS).backward()
        end = time.perf_counter()
        times["graph"].append(marks[1] - marks[0])
        times["forward"].append(marks[2] - marks[1])
        times["energy_and_forces"].append(marks[3] - marks[2])
        times["step"].append(end - marks[2])
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    graph = batch.graph
    print(json.dumps({
        "preset": preset, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "seconds": medians,
        "structures": graph.structures, "atoms": graph.atoms, "edges": graph.edges, "near_pairs": graph.near.pairs,
        "edges_per_s": graph.edges / medians["step"], "atoms_per_s": graph.atoms / medians["step"],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
