"""janus-train: the command line.

Exit codes: 0 done, 2 the user's input is wrong, 3 check-data found something suspicious, 75 asked to stop and worth
starting again, 1 everything else.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from janus_train.data.command import app as data_app
from janus_train.failure import UserError

if TYPE_CHECKING:
    from janus_train.recipes import RecipeMaker, StartOpener

app = typer.Typer(
    name="janus-train",
    help="Train interatomic potentials with exact forces, and use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data_app, name="data")

Settings = Annotated[
    list[str] | None, typer.Argument(help="a YAML file, and settings such as optim.lr=0.001", show_default=False)
]
JsonFlag = Annotated[bool, typer.Option("--json", help="print JSON")]


def main() -> None:
    """Runs a command; the user's mistakes end in one message and exit code 2."""
    from janus_comm import LaunchError, RankFailed
    from janus_train.stopping import REQUEUE_EXIT_CODE, Stopped

    try:
        app(standalone_mode=True)
    except Stopped as stopped:
        if _talks():
            print(stopped)
        sys.exit(REQUEUE_EXIT_CODE)
    except RankFailed as error:
        # Each rank knows its own part of what happened, and the first one may be gone.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (UserError, LaunchError) as error:
        # On several ranks all of them raise the same; one of them says it.
        if _talks():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _talks() -> bool:
    """Whether this is the rank that talks to the person; a process that does not know its rank does, too."""
    from janus_comm import LaunchError, place_of

    try:
        return place_of(os.environ).rank == 0
    except LaunchError:
        return True


@app.command()
def train(settings: Settings = None) -> None:
    """Train. With nothing given: the nano preset on the bundled data set, ten to eighteen minutes on two cores."""
    from janus_train.config import file_and_settings, load_config
    from janus_train.run import train as train_run

    train_run(load_config(*file_and_settings(settings or [])), *_matris())


@app.command()
def resume(
    directory: Annotated[Path, typer.Argument(help="run directory")],
    settings: Annotated[list[str] | None, typer.Argument(help="settings to change", show_default=False)] = None,
) -> None:
    """Go on with a run from its newest checkpoint."""
    from janus_train.run import resume as resume_run

    resume_run(directory, settings or [], *_matris())


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="run directory or saved model")],
    data: Annotated[list[Path] | None, typer.Argument(help="labelled files; else what validated the run")] = None,
    task: Annotated[str | None, typer.Option(help="task of frames that name none")] = None,
    group_key: Annotated[str | None, typer.Option(help="name of a frame's group in the files: config_type")] = None,
    physics: Annotated[bool, typer.Option("--physics", help="also the physics card, in physics.json")] = False,
    md_ps: Annotated[float, typer.Option(help="length of its runs at constant energy, ps", min=0.0)] = 1.0,
    benchmark: Annotated[
        str | None, typer.Option(help="instead: matbench-discovery, matcalc, wiggle150, gmtkn55 or x23")
    ] = None,
    benchmark_data: Annotated[Path | None, typer.Option("--data", help="its files")] = None,
    relax: Annotated[bool | None, typer.Option(help="whether it relaxes; else as it usually does")] = None,
    output: Annotated[Path | None, typer.Option(help="directory of its answers; else MODEL/benchmarks")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the errors of a model on labelled structures, and with --physics what it says of prototypes.

    With --benchmark NAME --data PATH: the numbers of a known benchmark, on the files that you have.
    """
    if benchmark is not None:
        if benchmark_data is None or data:
            raise UserError(f"--benchmark {benchmark} needs its files as --data PATH, and no others")
        _evaluate_benchmark(model, benchmark, benchmark_data, task, relax, output, as_json)
        return
    if benchmark_data is not None or relax is not None or output is not None:
        raise UserError("--data, --relax and --output belong to --benchmark NAME; labelled files come without --data")
    from janus_train.recipes.matris_inference import evaluate_files

    tables = evaluate_files(model, data, task, group_key)
    if not as_json:
        from janus_train.display import elements_table, errors_table, groups_table

        print(errors_table(tables["tasks"]))
        if tables["groups"]:
            print(f"\n{groups_table(tables['groups'])}")
        if tables["elements"]:
            print(f"\n{elements_table(tables['elements'])}")
    if physics:
        from janus_train.display import physics_table
        from janus_train.recipes.matris_physics import write_physics_card

        tables["physics"] = write_physics_card(model, data, task, md_ps, _say_aside)
        if not as_json:
            print(physics_table(tables["physics"]))
    if as_json:
        print(json.dumps(tables, indent=2))


def _evaluate_benchmark(
    model: Path, name: str, data: Path, task: str | None, relax: bool | None, output: Path | None, as_json: bool
) -> None:
    from dataclasses import asdict

    from janus_train.display import benchmark_table
    from janus_train.recipes.matris_benchmarks import judge_model

    found = judge_model(model, name, data, task, relax, output, _say_aside)
    print(json.dumps(asdict(found), indent=2) if as_json else benchmark_table(found))


def _say_aside(text: str) -> None:
    """Beside the output, which may be JSON."""
    print(text, file=sys.stderr)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="run directory or saved model")],
    data: Annotated[Path, typer.Argument(help="structures, any file ASE reads")],
    output: Annotated[Path, typer.Option(help="extended XYZ to write; must not exist")],
    task: Annotated[str | None, typer.Option(help="whose reference energies to use")] = None,
) -> None:
    """Write energies, forces and stress of structures to an extended XYZ file."""
    from janus_train.recipes.matris_inference import predict_file

    count = predict_file(model, data, output, task)
    print(f"{count} structures written to {output}")


@app.command()
def export(
    from_matris: Annotated[Path, typer.Option("--from-matris", help="official checkpoint of MatRIS")],
    output: Annotated[Path, typer.Option(help="model directory to write; must not exist")],
) -> None:
    """Turn official MatRIS weights into a model that evaluate, predict and the calculator take."""
    _matris()
    from janus_train.recipes.matris_compat import export_reference

    about = export_reference(from_matris, output)
    print(f"{about['parameters']:,} parameters ({about['dtype']}) written to {output}")


@app.command()
def prune(
    model: Annotated[Path, typer.Argument(help="run directory or saved model")],
    elements: Annotated[str, typer.Option(help="chemical symbols, such as Cu,O")],
    output: Annotated[Path, typer.Option(help="model directory to write; must not exist")],
) -> None:
    """Cut a model down to the experts that some elements use: smaller, and the same for them."""
    _matris()
    from janus_train.recipes.matris_pruning import prune_file

    about = prune_file(model, elements, output)
    print(
        f"{about['parameters']:,} of {about['parameters_before']:,} parameters and {about['experts']} of "
        f"{about['experts_before']} experts a layer written to {output}"
    )


@app.command("check-data")
def check_data(settings: Settings = None, as_json: JsonFlag = False) -> None:
    """Read the data a configuration asks for (or the files given) and print what they hold; code 3: suspicious."""
    from janus_train.check_data import check
    from janus_train.config import file_and_settings, with_data_files

    report = check(*file_and_settings(with_data_files(settings or [])))
    print(json.dumps(report.content, indent=2) if as_json else report.text)
    if report.suspicious:
        raise typer.Exit(3)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="a preset (nano, ..., L, matris-6m, matris-10m) or a path to a model")],
    as_json: JsonFlag = False,
    expert_map: Annotated[
        Path | None, typer.Option(help="also write which experts a saved model's elements use, a .csv or .json file")
    ] = None,
) -> None:
    """Print the shape and the parameter counts of a preset or a saved model, and how its experts are used."""
    _matris()
    from janus_train.recipes.matris import describe, write_expert_map

    about = describe(model)
    if expert_map is not None:
        write_expert_map(model, expert_map)
    if as_json:
        print(json.dumps(about, indent=2))
        return
    total, active = about["parameters_total"], about["parameters_active"]
    print(f"{model}: {total:,} parameters, {active:,} active for an atom")
    for name, value in about["config"].items():
        print(f"  {name:20} {value}")
    if about.get("experts"):
        from janus_train.display import experts_table

        print(experts_table(about["experts"]))


@app.command()
def plan(
    settings: Settings = None,
    machine: Annotated[str, typer.Option(help="h100, h200, cnis, lineshine, or a file like theirs")] = "h100",
    data: Annotated[Path | None, typer.Option(help="statistics of --save-statistics, instead of reading data")] = None,
    save_statistics: Annotated[Path | None, typer.Option(help="write the statistics of the data here")] = None,
    scaling: Annotated[str | None, typer.Option(help="also a table up to --devices: weak or strong")] = None,
    devices: Annotated[int, typer.Option(help="most devices of that table", min=1)] = 45_056,
    plot: Annotated[Path | None, typer.Option(help="draw that table, an .svg file")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Foretell what a training step will need: memory, bytes sent, operations and time, on any number of devices."""
    _matris()
    from janus_train.config import file_and_settings, load_config
    from janus_train.plan.command import Request, run_plan

    request = Request(machine, data, save_statistics, scaling, devices, plot)
    report = run_plan(load_config(*file_and_settings(settings or [])), request)
    print(json.dumps(report.content, indent=2) if as_json else report.text)


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Write report.html of a run again, from what is in its directory."""
    from janus_train.report import build_report

    if not (directory / "config.yaml").exists():
        raise UserError(f"no run in {directory} (no config.yaml there)")
    print(build_report(directory))


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration file."""
    from janus_train.config import config_schema

    print(json.dumps(config_schema(), indent=2))


def _matris() -> tuple[RecipeMaker, StartOpener]:
    """What makes a MatRIS-MoE: anew, and from trained weights."""
    try:
        from janus_train.recipes.matris import matris_recipe
        from janus_train.recipes.matris_start import matris_start
    except ModuleNotFoundError as error:
        if error.name != "matris_model":
            raise
        raise UserError("this needs the MatRIS-MoE model: pip install 'janus-train[matris]'") from error
    return matris_recipe, matris_start
