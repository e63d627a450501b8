"""Plans as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from janus_train.plan.machine import Machine
from janus_train.plan.scaling import ScalingRow
from janus_train.plan.step import StepPlan

_MEANING = {
    "gather": "weights of blocks",
    "reduce_scatter": "their gradients",
    "halo": "rows of neighbours",
    "experts": "restored experts and their gradients",
    "rows": "rows to experts and back",
    "sums": "losses, norms, what every rank has whole",
    "all_reduce": "gradients between replicas",
    "matrices": "slices of momentum to where matrices are whole, and back",
}


def plan_text(plan: StepPlan, machine: Machine) -> str:
    """A plan for people."""
    layout, work, seconds = plan.layout, plan.work, plan.seconds
    held = sum(plan.memory.values()) / 1e9
    in_passes = f" in each of {work['passes']} passes" if work["passes"] > 1 else ""
    lines = [
        f"{layout.replicas} × {layout.unit} devices of {plan.machine}; {work['atoms']:,} atoms and "
        f"{work['edges']:,} edges a step",
        f"fullest rank{in_passes}: {work['atoms of a rank']:,} atoms, {work['edges of a rank']:,} edges, "
        f"{work['neighbours elsewhere']:,} neighbours elsewhere",
        "",
        *_column("memory of a device, GB", {kind: value / 1e9 for kind, value in plan.memory.items()}, {}),
        "",
        *_column("sent by a device in a step, GB", {kind: value / 1e9 for kind, value in plan.sent.items()}, _MEANING),
        "",
        *_column("seconds of a step, nothing hidden", seconds.parts, {}),
        "",
        f"{plan.flops / 1e12:,.4g} TFLOP on a device, {plan.all_flops / 1e12:,.4g} on all",
        f"{seconds.with_overlap:.4g} s a step ({seconds.without_overlap:.4g} s without overlap), "
        f"{work['atoms'] / seconds.with_overlap:,.0f} atoms/s",
        f"{100 * plan.efficiency:.1f} % of it computing, units {100 * plan.evenness:.1f} % even, "
        f"{100 * plan.of_peak:.1f} % of the devices' peak",
    ]
    if held > machine.memory_gb:
        lines.append(
            f"does not fit: {held:.1f} GB of {machine.memory_gb:g} GB; take more ranks in a unit, fewer edges, or "
            "mesh.weights=regather"
        )
    if machine.assumed:
        lines.append(f"{plan.machine}: nobody has published {', '.join(machine.assumed)}; these are assumptions")
    return "\n".join(lines)


def scaling_text(kind: str, rows: Sequence[ScalingRow]) -> str:
    """A table of scaling for people."""
    names = [
        "devices",
        "edges a step",
        "edges a device",
        "GB a device",
        "s a step",
        "computing",
        "of peak",
        "efficiency",
    ]
    table = [names]
    for row in rows:
        plan, devices = row.plan, row.plan.layout.devices
        held = sum(plan.memory.values()) / 1e9
        shares = [f"{100 * share:.1f} %" for share in (plan.efficiency, plan.of_peak, row.efficiency)]
        counts = [f"{count:,.0f}" for count in (devices, plan.work["edges"], plan.work["edges"] / devices)]
        table.append([*counts, f"{held:.3g}", f"{plan.seconds.with_overlap:.4g}", *shares])
    widths = [max(len(row[place]) for row in table) for place in range(len(names))]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join([f"{kind} scaling", *lines])


def _column(title: str, values: Mapping[str, float], meanings: Mapping[str, str]) -> list[str]:
    lines = [f"{title}: {sum(values.values()):.4g}"]
    return lines + [
        f"  {kind.replace('_', '-'):20} {value:10.4g}  {meanings.get(kind, '')}".rstrip()
        for kind, value in values.items()
    ]
