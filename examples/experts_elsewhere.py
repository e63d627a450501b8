"""The expert layer in a small model that knows nothing of chemistry: readings of many kinds of sensors.

Whatever has a kind that decides how it is to be treated can be routed like an element: give each kind a number from 1
to 118, sort rows by it, say how many there are of each. Here every kind of sensor answers in its own, unknown way; a
shared expert learns what they have in common, and each kind mixes two of eight experts for the rest.
"""

import torch
from torch import nn

from janus_moe import MoELayer, group_rows

KINDS, READINGS, WIDTH = 20, 40, 16


def readings(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two inputs of every reading, all readings of a kind together, and what the sensor answers."""
    inputs = torch.rand(KINDS, READINGS, 2, generator=generator) * 2 - 1
    kind = torch.arange(KINDS)[:, None]
    pitch, family = 1 + 0.2 * kind, kind % 4
    answer = torch.sin(pitch * inputs[..., 0]) + (family - 1.5) * inputs[..., 0] * inputs[..., 1]
    return inputs.flatten(0, 1), answer.flatten()


class SensorModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(2, WIDTH)
        self.layers = nn.ModuleList(MoELayer(WIDTH, experts=8, top_k=2, hidden=16, shared_hidden=16) for _ in range(2))
        self.answer = nn.Linear(WIDTH, 1)

    def forward(self, inputs: torch.Tensor, groups) -> torch.Tensor:
        rows = torch.tanh(self.lift(inputs))
        for layer in self.layers:
            rows = rows + layer(rows, groups)
        return self.answer(rows).squeeze(1)


def main() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model, groups = SensorModel(), group_rows(range(1, KINDS + 1), [READINGS] * KINDS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        inputs, answer = readings(generator)
        optimizer.zero_grad()
        (model(inputs, groups) - answer).square().mean().backward()
        optimizer.step()
    inputs, answer = readings(generator)
    with torch.no_grad():
        error = (model(inputs, groups) - answer).square().mean()
    print(f"mean square error {error:.4f}, of always answering the mean {answer.var():.4f}")
    # A kind's readings do not depend on what else is in the batch, so any part of a batch is a batch.
    some = slice(2 * READINGS, 5 * READINGS)
    with torch.no_grad():
        alone = model(inputs[some], group_rows(range(3, 6), [READINGS] * 3))
        together = model(inputs, groups)[some]
    print(f"three kinds alone differ from three among twenty by {(alone - together).abs().max():.1e}")
    print("experts of kind 1 and of kind 5:", *(model.layers[0].router.selection[kind].tolist() for kind in (1, 5)))


if __name__ == "__main__":
    main()
