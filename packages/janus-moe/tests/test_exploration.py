"""Selections follow table and noise until they are frozen, and never change after that."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from janus_moe import ELEMENTS, ElementRouter, initial_selection
from janus_moe.exploration import noise_scale, selection_noise

experts_and_top_k = st.integers(1, 30).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e)))


def stir(router, seed):
    with torch.no_grad():
        router.logits.copy_(torch.randn(router.logits.shape, generator=torch.Generator().manual_seed(seed)))


def best(table, top_k):
    """Of each row the places of the largest numbers, the first of equal ones, ascending."""
    return [sorted(sorted(range(len(row)), key=lambda n: (-row[n], n))[:top_k]) for row in table.tolist()]


@given(experts_and_top_k, st.integers(0, 1000), st.sampled_from([0.0, 0.5, 3.0]))
def test_exploring_selects_what_table_and_noise_put_on_top(sizes, seed, scale):
    experts, top_k = sizes
    router = ElementRouter(experts, top_k)
    stir(router, seed)
    noise = scale * selection_noise(experts, seed, 3, 1)
    router.explore(noise)
    assert router.selection.tolist() == best(router.logits.detach() + noise, top_k)
    assert int(router.frozen_at) == -1


@given(experts_and_top_k, st.integers(0, 1000), st.integers(0, 10**6))
def test_a_frozen_selection_is_the_best_of_the_table_and_never_changes(sizes, seed, step):
    experts, top_k = sizes
    router = ElementRouter(experts, top_k)
    router.explore(selection_noise(experts, seed, 0, 0))
    stir(router, seed)
    router.freeze(step)
    expected = best(router.logits, top_k)
    stir(router, seed + 1)
    for change in (lambda: router.explore(selection_noise(experts, 0, 1, 0)), lambda: router.freeze(step + 1)):
        with pytest.raises(RuntimeError, match=f"frozen at step {step} "):
            change()
    assert router.selection.tolist() == expected
    assert int(router.frozen_at) == step


def test_the_moment_of_freezing_travels_with_the_state():
    frozen, fresh = ElementRouter(6, 2), ElementRouter(6, 2)
    stir(frozen, 0)
    frozen.freeze(7)
    fresh.load_state_dict(frozen.state_dict())
    assert torch.equal(fresh.selection, frozen.selection)
    with pytest.raises(RuntimeError, match="frozen at step 7 "):
        fresh.explore(torch.zeros(ELEMENTS, 6))
    fresh.start_from(initial_selection(6, 2))
    fresh.explore(torch.zeros(ELEMENTS, 6))
    assert torch.equal(fresh.selection[1:], initial_selection(6, 2)[1:])


def test_freezing_at_once_keeps_the_initial_selection():
    router = ElementRouter(24, 2)
    router.freeze(0)
    assert torch.equal(router.selection[1:], initial_selection(24, 2)[1:])


@given(st.integers(1, 30), st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 30))
def test_noise_depends_on_seed_step_and_layer_and_on_nothing_else(experts, seed, step, layer):
    torch.manual_seed(0)
    noise = selection_noise(experts, seed, step, layer)
    torch.manual_seed(1)
    assert torch.equal(noise, selection_noise(experts, seed, step, layer))
    for other in ((seed + 1, step, layer), (seed, step + 1, layer), (seed, step, layer + 1)):
        assert not torch.equal(noise, selection_noise(experts, *other))
    assert float(noise.std()) == pytest.approx(1.0, abs=6 / (2 * noise.numel()) ** 0.5)


def test_noise_decays_to_nothing_until_the_freezing():
    scales = [noise_scale(step, 0.5, 10) for step in range(12)]
    assert scales[0] == 0.5
    assert all(a > b for a, b in itertools.pairwise(scales[:11]))
    assert scales[10] == scales[11] == noise_scale(0, 0.5, 0) == 0.0
