"""Bytes that sharded experts move in a training step: by plan, with all rows moving, with all weights moving.

    python benchmarks/expert_traffic.py [--presets S M L] [--mixture oxides] [--ranks 8] [--atoms 600]

Every layer of a model is run on every rank, forward, inner gradient and outer pass, on tensors without memory, and an
exchange counts what it is given; the table has the rank that sends most, and every count is compared with what the plan
predicts. Times are those of the planner's cost model, for a rank of 30 TFLOP/s that sends 200 GB/s.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from planner import batch_of
from torch import Tensor

from janus_moe import MoELayer, loop_product
from janus_moe.expert_parallel import UnitStep, shard_experts
from janus_moe.planner import ExpertPlan, plan_experts, rows_move, weights_move
from janus_moe.testing import MIXTURES
from matris_model import PRESETS, MatRISMoEConfig


class Counting:
    """An exchange of tensors without memory that counts bytes for other ranks, in every derivative."""

    def __init__(self, rank: int) -> None:
        self.rank, self.sent = rank, 0

    def __call__(self, rows: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]) -> Tensor:
        return _Counted.apply(rows, self, tuple(send_counts), tuple(receive_counts))


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: Counting, there: tuple[int, ...], back: tuple[int, ...]) -> Tensor:
        ctx.arguments = count, back, there
        assert rows.shape[0] == sum(there)
        count.sent += (sum(there) - there[count.rank]) * rows.shape[1:].numel() * rows.element_size()
        return rows.new_empty(sum(back), *rows.shape[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None]:
        return _Counted.apply(cotangent, *ctx.arguments), None, None, None


def counted_bytes(config: MatRISMoEConfig, plan: ExpertPlan, rank: int) -> int:
    """What a rank sends in a step of all layers."""
    exchange = Counting(rank)
    step = UnitStep(plan, rank, exchange, "meta")
    counts = plan.rows[:, rank]
    for layer in range(plan.layers):
        with torch.device("meta"):
            moe = MoELayer(config.width, config.experts, config.top_k, config.expert_hidden, 1, loop_product)
            rows = torch.empty(int(counts[layer].sum()), config.width, requires_grad=True)
        (experts,) = shard_experts(moe, rank, plan.ranks)
        experts.layer = layer
        out = moe(rows, step.group_rows(plan.elements, counts[layer].tolist(), "meta"))
        energy = torch.sin(out).sum()
        (force,) = torch.autograd.grad(energy, rows, create_graph=True)
        (energy**2 + force.square().sum()).backward()
        step.return_gradients([experts])
    return exchange.sent


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    config = PRESETS[name]
    rows, selection, cost = batch_of(config, arguments.mixture, arguments.ranks, arguments.atoms)
    work = rows, selection, config.experts, config.expert_hidden
    found = []
    for kind, plan in (
        ("by plan", plan_experts(*work, cost)),
        ("rows move", rows_move(*work)),
        ("weights move", weights_move(*work)),
    ):
        predicted = {what: table.sum(0) for what, table in plan.bytes_sent(config.width).items()}
        total = sum(predicted.values())
        counted = [counted_bytes(config, plan, rank) for rank in range(arguments.ranks)]
        times = plan.times(cost)
        found.append(
            {
                "preset": name,
                "plan": kind,
                "counted_is_predicted": counted == total.tolist(),
                "bytes_sent_by_busiest_rank": max(counted),
                "bytes_sent_by_all": sum(counted),
                **{what: int(table[total.argmax()]) for what, table in predicted.items()},
                "modelled_seconds": float(times.max(1).sum()) * 1e-12,
                "modelled_max_over_mean": float(times.max(1).sum() / times.mean(1).sum()),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["S", "M", "L"], choices=PRESETS)
    parser.add_argument("--mixture", default="oxides", choices=MIXTURES)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--atoms", type=int, default=600, help="of each rank, about")
    arguments = parser.parse_args()
    results = [row for name in arguments.presets for row in measure(name, arguments)]
    print(json.dumps({"setting": vars(arguments), "results": results}, indent=1))
    print("\n| preset | plan | GB sent by one rank | of rows | of weights | of gradients | modelled s | max/mean |")
    print("|---|---|---|---|---|---|---|---|")
    for row in results:
        sizes = (row["bytes_sent_by_busiest_rank"], row["rows"], row["weights"], row["gradients"])
        gigabytes = " | ".join(f"{size / 1e9:.2f}" for size in sizes)
        print(
            f"| {row['preset']} | {row['plan']} | {gigabytes} | {row['modelled_seconds']:.3f} "
            f"| {row['modelled_max_over_mean']:.2f} |"
        )
    assert all(row["counted_is_predicted"] for row in results), "counted bytes are not those predicted"


if __name__ == "__main__":
    main()
