"""Plans of steps: sizes of data, what a unit's ranks get of them, machines, the command."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from janus_graph import Structure, build_graph
from janus_train import UserError
from janus_train.cli import app
from janus_train.plan.expected import batch_of_edges, unit_workloads
from janus_train.plan.halo import expected_halos
from janus_train.plan.machine import load_machine, machine_names
from janus_train.plan.products import Operand, passes
from janus_train.plan.statistics import DataStatistics, data_statistics, load_statistics
from janus_train.plan.workload import workload_of_graph

CUTOFF, NEAR = 4.0, 3.0


@st.composite
def structures(draw):
    """From one isolated atom to some dozens, in cells that repeat in some directions."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    atoms, edge = draw(st.integers(1, 30)), draw(st.floats(2.5, 9.0))
    periodic = draw(st.lists(st.booleans(), min_size=3, max_size=3))
    numbers = rng.choice([1, 8, 26], atoms)
    return Structure(numbers, rng.random((atoms, 3)) * edge, np.diag(np.where(periodic, edge, 0.0)), periodic)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.lists(structures(), min_size=1, max_size=4))
def test_one_rank_is_foretold_exactly_from_sizes_alone(batch):
    data = data_statistics(batch, CUTOFF, NEAR)
    (foretold,) = unit_workloads(data.sizes, 1, CUTOFF)
    true = workload_of_graph(build_graph(batch, CUTOFF, NEAR))
    for field in fields(true):
        np.testing.assert_array_equal(getattr(foretold, field.name), getattr(true, field.name), err_msg=field.name)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.lists(structures(), min_size=1, max_size=4), st.integers(1, 5))
def test_ranks_have_all_of_a_batch_between_them(batch, ranks):
    sizes = data_statistics(batch, CUTOFF, NEAR).sizes
    (whole,), shared = unit_workloads(sizes, 1, CUTOFF), unit_workloads(sizes, ranks, CUTOFF)
    assert len(shared) == ranks
    assert sum(one.atoms for one in shared) == pytest.approx(whole.atoms, abs=ranks * len(batch))
    assert sum(one.edges for one in shared) == pytest.approx(whole.edges, abs=ranks * len(batch))
    assert sum(one.sent for one in shared) == pytest.approx(sum(one.received for one in shared), abs=ranks)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    st.tuples(*[st.floats(2.0, 40.0)] * 3),
    st.tuples(*[st.booleans()] * 3),
    st.integers(0, 500),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6).filter(any),
)
@example((2.0, 2.0, 2.0), (False, False, False), 0, [1.0, 0.0, 0.0])
def test_halos_are_sent_as_often_as_received_and_are_atoms_of_others(heights, periodic, atoms, weights):
    shares = (np.array(weights) / sum(weights)).tolist()
    halos = expected_halos(heights, periodic, atoms, shares, CUTOFF)
    assert sum(halo.sent for halo in halos) == pytest.approx(sum(halo.received for halo in halos))
    for halo, share in zip(halos, shares, strict=True):
        # Points of a grid stand for the atoms: as exact as the spacing of the grid over the box.
        assert -1e-9 <= halo.received <= atoms * (1 - share) + 0.1 * atoms + 1e-9
    if len(shares) == 1:
        assert halos[0].received == 0


def test_a_thick_part_of_a_crowd_needs_what_is_within_the_cutoff_of_its_faces():
    first, second = expected_halos((40.0, 10.0, 10.0), (True, True, True), 40_000, [0.5, 0.5], CUTOFF)
    # Two faces of 10 × 10 Å, and 10 atoms in each Å³.
    assert first.received == pytest.approx(2 * 100 * CUTOFF * 10, rel=0.03)
    assert second.received == pytest.approx(first.received, rel=0.01)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.lists(structures(), min_size=1, max_size=3), st.integers(0, 5000))
def test_batches_have_about_the_edges_that_were_asked_for(some, edges):
    data = data_statistics(some, CUTOFF, NEAR)
    batch = batch_of_edges(data, edges)
    assert batch
    largest = max(max(size.all_edges, 1) for size in data.sizes)
    assert len(batch) == 1 or abs(sum(max(size.all_edges, 1) for size in batch) - edges) <= largest


def test_statistics_come_back_from_their_file(tmp_path: Path):
    molecule = Structure([8, 1, 1], np.eye(3), np.zeros((3, 3)), [False] * 3)
    data = data_statistics([molecule], CUTOFF, NEAR)
    data.save(tmp_path / "data.json")
    assert load_statistics(tmp_path / "data.json") == data
    for wrong in ('{"sizes": [{}]}', '{"sizes": [], "cutoff": 4, "near_cutoff": 3}', "[", "[]"):
        (tmp_path / "other.json").write_text(wrong)
        with pytest.raises(UserError, match=r"other.json holds no statistics"):
            load_statistics(tmp_path / "other.json")
    with pytest.raises(UserError, match="cannot read statistics"):
        load_statistics(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (Operand.CONSTANT, Operand.TRAINED, 2),  # its value, the weight's gradient
        (Operand.TRAINED, Operand.TRAINED, 3),
        (Operand.MOVING, Operand.TRAINED, 6),
        (Operand.MOVING, Operand.MOVING, 9),
    ],
)
def test_passes_of_a_product(first, second, expected):
    assert passes(first, second).step == passes(second, first).step == expected


def test_machines_are_known_by_name_or_read_from_files(tmp_path: Path):
    assert {"h100", "h200", "cnis", "lineshine"} <= set(machine_names())
    for name in machine_names():
        machine = load_machine(name)
        assert machine.name == name
        for field in machine.assumed:
            assert getattr(machine, field.split(".")[0]) is not None
    file = tmp_path / "mine.yaml"
    file.write_text("devices_per_node: 0\n")
    with pytest.raises(UserError, match=r"mine.yaml: devices_per_node: .* peak_tflops: Field required"):
        load_machine(str(file))
    with pytest.raises(UserError, match="no machine 'h10', and no such file; there are cnis, h100"):
        load_machine("h10")


def test_more_ranks_hide_their_latency_in_fewer_hops_than_there_are_ranks():
    machine = load_machine("h100")
    for ranks, hops in ((1, 0), (2, 1), (8, 3)):
        assert machine.seconds_to_send(0, 1, ranks) == pytest.approx(hops * machine.within.latency_us * 1e-6)
    assert machine.seconds_to_send(10**9, 0, 8) == pytest.approx(1 / machine.within.gb_per_s)
    assert machine.seconds_to_send(10**9, 0, 16) == pytest.approx(1 / machine.between.gb_per_s)


def planned(tmp_path: Path, *arguments: str):
    data = tmp_path / "data.json"
    rng = np.random.default_rng(0)
    cells = [Structure([8, 26] * 8, rng.random((16, 3)) * 6, np.eye(3) * 6, [True] * 3) for _ in range(3)]
    DataStatistics(data_statistics(cells, 5.0, 4.0).sizes, 5.0, 4.0).save(data)
    model = ("model.blocks=2", "model.cutoff=5.0")
    found = CliRunner().invoke(app, ["plan", f"--data={data}", "data.batch_edges=4000", *model, *arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.stdout


def test_the_command_says_what_shards_take(tmp_path: Path):
    one = json.loads(planned(tmp_path, "--json"))
    four = json.loads(planned(tmp_path, "--json", "mesh.unit=4", "--machine=h200", "optim.ema_decay=0"))
    assert four["memory"]["parameters"] == pytest.approx(one["memory"]["parameters"] / 4, rel=0.05)
    assert four["memory"]["optimiser"] == four["memory"]["parameters"]
    adamw = json.loads(planned(tmp_path, "--json", "optim.orthogonal=false"))
    assert adamw["memory"]["optimiser"] == 2 * adamw["memory"]["parameters"]
    assert four["memory"]["moving mean"] == 0 < one["memory"]["moving mean"]
    assert not any(one["sent"].values())
    assert adamw["sent"]["matrices"] == 0
    # A rank has a quarter of each matrix, and three quarters of that belong elsewhere, there and back.
    assert four["sent"]["matrices"] == 2 * four["memory"]["parameters"] * 3 // 4
    assert all(four["sent"][kind] for kind in ("gather", "reduce_scatter", "halo", "experts", "sums"))
    passes = json.loads(planned(tmp_path, "--json", "mesh.unit=4", "--machine=h200", "data.pass_edges=300"))
    assert passes["work"]["passes"] == 4
    assert passes["memory"]["activations"] < 0.5 * four["memory"]["activations"]
    again = json.loads(planned(tmp_path, "--json", "mesh.unit=4", "mesh.weights=regather"))
    assert again["sent"]["gather"] > four["sent"]["gather"]
    checkpointed = json.loads(planned(tmp_path, "--json", "model.checkpoint=true"))
    assert 1.2 < checkpointed["flops"] / one["flops"] < 8 / 6
    double = json.loads(planned(tmp_path, "--json", "run.dtype=float64"))
    assert double["memory"]["parameters"] == 2 * one["memory"]["parameters"]


@pytest.mark.parametrize("kind", ["weak", "strong"])
def test_the_command_says_how_a_step_scales(tmp_path: Path, kind: str):
    plot = tmp_path / "plot.svg"
    text = planned(tmp_path, "mesh.unit=2", f"--scaling={kind}", "--devices=100", f"--plot={plot}")
    assert f"{kind} scaling" in text
    assert [line.split()[0] for line in text.splitlines()[-4:]] == ["devices", "2", "16", "100"]
    assert "<svg" in plot.read_text()
    content = json.loads(planned(tmp_path, "mesh.unit=2", f"--scaling={kind}", "--devices=100", "--json"))
    devices = [row["devices"] for row in content["scaling"]]
    assert devices == [2, 16, 100]
    edges = [row["work"]["edges"] / row["devices"] for row in content["scaling"]]
    assert edges[-1] == pytest.approx(edges[0] if kind == "weak" else edges[0] / 50, rel=0.2)


def test_the_command_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(UserError, match="'up' is not one of weak, strong"):
        planned(tmp_path, "--scaling=up")
    with pytest.raises(UserError, match="route by tangents cannot be planned"):
        planned(tmp_path, "mesh.route=tangent", "mesh.unit=2")
    with pytest.raises(UserError, match="add --scaling weak"):
        planned(tmp_path, "--plot=p.svg")
    with pytest.raises(UserError, match="measure the data again with this model"):
        planned(tmp_path, "model.cutoff=6.0")
    assert "does not fit" in planned(tmp_path, "model.width=4096", "data.batch_edges=400000")
