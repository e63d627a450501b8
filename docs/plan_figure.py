"""Draws `docs/plan.svg`: how the largest preset scales on 45,056 GPUs, as planned: `python docs/plan_figure.py`."""

from dataclasses import replace
from pathlib import Path

from janus_train.data.load import bundled_frames
from janus_train.plan.figure import draw_scaling
from janus_train.plan.machine import load_machine
from janus_train.plan.scaling import LARGEST, strong_scaling, weak_scaling
from janus_train.plan.statistics import data_statistics
from janus_train.plan.step import Layout
from janus_train.recipes.matris_plan import matris_shape
from matris_model import preset_config

EDGES_A_DEVICE = 5_584


def main() -> None:
    config = preset_config("L")
    data = data_statistics([frame.structure for frame in bundled_frames()], config.cutoff, config.near_cutoff)
    shape = matris_shape(config, data.atoms_of_element(119), chained=True)
    layout, machine = Layout(replicas=LARGEST // 8, unit=8), load_machine("cnis")
    edges = EDGES_A_DEVICE * LARGEST
    strong = strong_scaling(shape, data, edges, layout, machine)[2:]  # on fewer devices a step takes minutes
    tables = {
        "weak scaling": weak_scaling(shape, data, edges, layout, machine),
        "strong scaling": [replace(row, efficiency=row.efficiency / strong[0].efficiency) for row in strong],
    }
    draw_scaling(tables, Path(__file__).parent / "plan.svg")
    for title, rows in tables.items():
        print(title)
        for row in rows:
            plan = row.plan
            print(
                f"| {plan.layout.devices:,} | {plan.seconds.with_overlap:.2f} | {100 * plan.efficiency:.0f} % "
                f"| {100 * plan.of_peak:.0f} % | {100 * row.efficiency:.0f} % |"
            )


if __name__ == "__main__":
    main()
