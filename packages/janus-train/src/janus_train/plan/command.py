"""What `janus-train plan` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_train.config import Config
from janus_train.failure import UserError
from janus_train.plan.figure import draw_scaling
from janus_train.plan.machine import load_machine
from janus_train.plan.scaling import strong_scaling, weak_scaling
from janus_train.plan.statistics import load_statistics
from janus_train.plan.step import Layout, plan_step
from janus_train.plan.tables import plan_text, scaling_text

_SCALINGS = {"weak": weak_scaling, "strong": strong_scaling}


@dataclass(frozen=True)
class Request:
    """What is asked of a plan, beside the configuration of the run.

    Attributes:
        machine: its name or file.
        data: statistics to plan with; those of the configuration's data otherwise.
        save_statistics: where to write these.
        scaling: `weak`, `strong` or None.
        devices: most of a table of scaling.
        plot: where to draw it.
    """

    machine: str
    data: Path | None = None
    save_statistics: Path | None = None
    scaling: str | None = None
    devices: int = 1
    plot: Path | None = None


@dataclass(frozen=True)
class PlanReport:
    """What was planned: for people, and for programs."""

    text: str
    content: dict[str, Any]


def run_plan(config: Config, request: Request) -> PlanReport:
    """The plan of a configuration's step.

    Raises:
        UserError: a machine, statistics or a configuration that cannot be read, or a kind of scaling that is none.
    """
    from janus_train.recipes.matris_plan import planned_shape, statistics_of

    if request.scaling is not None and request.scaling not in _SCALINGS:
        raise UserError(f"--scaling: '{request.scaling}' is not one of {', '.join(_SCALINGS)}")
    if request.plot is not None and request.scaling is None:
        raise UserError("--plot draws a table of scaling; add --scaling weak or --scaling strong")
    if config.mesh.unit > 1 and config.mesh.route == "tangent":
        raise UserError("mesh.route: the route by tangents cannot be planned; set mesh.route=backward")
    machine = load_machine(request.machine)
    data = statistics_of(config) if request.data is None else load_statistics(request.data)
    if request.save_statistics is not None:
        data.save(request.save_statistics)
    shape = planned_shape(config, data)
    layout = Layout(
        replicas=config.mesh.replica,
        unit=config.mesh.unit,
        regather=config.mesh.weights == "regather",
        pass_edges=config.data.pass_edges,
        checkpoint=bool(config.model.checkpoint),
        orthogonal=config.optim.orthogonal,
        moving_mean=config.optim.ema_decay > 0,
        number=8 if config.run.dtype == "float64" else 4,
    )
    plan = plan_step(shape, data, config.data.batch_edges, layout, machine)
    text, content = plan_text(plan, machine), plan.to_dict()
    if request.scaling is not None:
        scale = _SCALINGS[request.scaling]
        rows = scale(shape, data, config.data.batch_edges, layout, machine, request.devices)
        text += "\n\n" + scaling_text(request.scaling, rows)
        content["scaling"] = [{**row.plan.to_dict(), "relative_efficiency": row.efficiency} for row in rows]
        if request.plot is not None:
            title = f"{config.model.preset} on {machine.name}: {request.scaling} scaling"
            draw_scaling({title: rows}, request.plot)
    return PlanReport(text, content)
