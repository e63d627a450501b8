"""Statistics of experts equal those of counting row by row, and files of experts say what the router says."""

import csv
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import ElementRouter
from janus_moe.statistics import expert_statistics, write_expert_maps

sizes = st.integers(1, 12).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e)))
rows_of_elements = st.dictionaries(st.integers(1, 118), st.integers(0, 30), max_size=6)


def routed(experts, top_k, rows_of_element):
    router = ElementRouter(experts, top_k).double()
    with torch.no_grad():
        router.logits.copy_(torch.randn(router.logits.shape, generator=torch.Generator().manual_seed(experts)) * 3)
    selection, gates = router(torch.arange(119))
    rows = torch.zeros(119, dtype=torch.int64)
    for z, count in rows_of_element.items():
        rows[z] = count
    return selection, gates.detach(), rows


def entropy(weights):
    total = sum(weights)
    return -sum(w / total * math.log(w / total) for w in weights if w)


@given(sizes, rows_of_elements.filter(lambda rows: sum(rows.values())))
def test_statistics_equal_those_of_going_row_by_row(sizes, rows_of_element):
    experts, top_k = sizes
    selection, gates, rows = routed(experts, top_k, rows_of_element)
    load, carried, mixing = [0] * experts, [0.0] * experts, []
    for z, count in rows_of_element.items():
        for _ in range(count):
            mixing.append(entropy(gates[z].tolist()))
            for expert, gate in zip(selection[z].tolist(), gates[z].tolist(), strict=True):
                load[expert] += 1
                carried[expert] += gate
    found = expert_statistics(selection, gates, rows, experts)
    assert found.load == tuple(load)
    assert found.dead == tuple(expert for expert in range(experts) if not load[expert])
    assert found.max_over_mean == pytest.approx(max(load) / (sum(load) / experts), rel=1e-12)
    assert found.effective_experts == pytest.approx(math.exp(entropy(carried)), rel=1e-10)
    if experts > 1:
        assert found.load_entropy == pytest.approx(entropy(load) / math.log(experts), rel=1e-10, abs=1e-12)
    if top_k > 1:
        assert found.gate_entropy == pytest.approx(sum(mixing) / len(mixing) / math.log(top_k), rel=1e-10, abs=1e-12)


def test_without_rows_all_experts_are_dead_and_nothing_is_uneven():
    found = expert_statistics(*routed(4, 2, {}), 4)
    assert found.load == (0, 0, 0, 0)
    assert found.dead == (0, 1, 2, 3)
    assert (found.max_over_mean, found.load_entropy, found.gate_entropy, found.effective_experts) == (
        1.0,
        1.0,
        1.0,
        0.0,
    )


def test_one_element_uses_its_own_experts_alone_and_alike_at_the_start():
    router = ElementRouter(8, 2)
    selection, gates = router(torch.arange(119))
    found = expert_statistics(
        selection, gates.detach(), torch.zeros(119, dtype=torch.int64).index_fill(0, selection.new_tensor([8]), 5), 8
    )
    assert found.max_over_mean == pytest.approx(4.0)
    assert found.load_entropy == pytest.approx(1 / 3)
    assert found.gate_entropy == pytest.approx(1.0)
    assert found.effective_experts == pytest.approx(2.0)
    assert set(range(8)) - set(found.dead) == set(selection[8].tolist())


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_files_of_experts_say_what_the_router_says(suffix, tmp_path):
    selection, gates, _ = routed(6, 2, {})
    table = torch.zeros(119, 6, dtype=torch.float64).scatter(1, selection, gates)
    path = tmp_path / f"experts{suffix}"
    write_expert_maps({"first": table, "second": table.flip(1)}, [8, 1], path)
    if suffix == ".csv":
        with path.open(newline="") as file:
            lines = [(row["layer"], row["atomic_number"], row["expert"], row["weight"]) for row in csv.DictReader(file)]
    else:
        lines = [
            (layer, z, expert, weight)
            for layer, elements in json.loads(path.read_text()).items()
            for z, weights in elements.items()
            for expert, weight in weights.items()
        ]
    found = {(layer, int(z), int(expert)): float(weight) for layer, z, expert, weight in lines}
    assert len(lines) == len(found) == 2 * 2 * 2
    for z in (1, 8):
        for expert, gate in zip(selection[z].tolist(), gates[z].tolist(), strict=True):
            assert found["first", z, expert] == found["second", z, 5 - expert] == gate


def test_a_file_of_experts_with_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"end its name in \.csv or \.json"):
        write_expert_maps({}, [1], tmp_path / "experts.txt")
