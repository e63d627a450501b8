"""A trainer from parts, in one screen: a batch, its loss, a double backward, an optimiser step. No configuration."""

import torch

from janus_comm import SingleRank
from janus_train import ReplicatedStep
from janus_train.data.batch import FrameSource
from janus_train.data.frame import with_task_indices
from janus_train.data.load import bundled_frames
from matris_model import MatRISMoE, save_model


def main() -> None:
    frames = with_task_indices([f for f in bundled_frames() if f.task == "metals"][:40], ["metals"])
    model = MatRISMoE.from_preset("nano", seed=0, blocks=1, tasks=("metals",))
    source = FrameSource(frames, model.config.cutoff, model.config.near_cutoff)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = ReplicatedStep(model, {"energy": 1.0, "forces": 10.0}, SingleRank())
    for number in range(5):
        result = step.gradients(step.prepare(source, range(8 * number, 8 * number + 8)))
        optimizer.step()
        print(f"step {number}: loss {result.loss:.3f}, gradient {result.grad_norm:.2f}")
    save_model(model, "metals-model")


if __name__ == "__main__":
    main()
