"""Small potentials that obey every law, and ones that each break one, to see that the laws find it."""

import dataclasses
import math

import torch
from torch import nn

from janus_graph import conservative_properties, edge_vectors, no_halo
from janus_moe import MoELayer, group_rows
from matris_model.basis import envelope

CUTOFF, NEAR_CUTOFF = 4.0, 3.0


def conservative(energy):
    return lambda graph, properties: conservative_properties(lambda g: (energy(g), None), graph, properties)


def per_atom(graph, terms):
    return terms.new_zeros(graph.structures).index_add(0, graph.structure_index, terms)


def pair_energy(graph, weight, fade=envelope):
    vectors = edge_vectors(graph)
    distances = vectors.square().sum(dim=1).sqrt()
    owner = graph.structure_index.index_select(0, graph.edge_index[0])
    terms = weight(vectors, distances, graph) * fade(distances, graph.cutoff)
    return terms.new_zeros(graph.structures).index_add(0, owner, terms)


def decay(vectors, distances, graph):
    return torch.exp(-distances) / graph.atomic_numbers[graph.edge_index[1]]


def honest(graph):
    return pair_energy(graph, decay)


def with_honest(energy):
    return conservative(lambda graph: honest(graph) + energy(graph))


def chirality(graph):
    """Signed volumes of triples of edges of an atom: they change sign in a mirror."""
    vectors = edge_vectors(graph)
    terms = torch.zeros(graph.atoms, dtype=torch.float64)
    element = graph.atomic_numbers.index_select(0, graph.edge_index[1])
    weighted = vectors * (envelope(vectors.norm(dim=1), graph.cutoff) * element)[:, None]
    for atom in range(graph.atoms):
        own = weighted[graph.edge_index[0] == atom]
        lengths = own.norm(dim=1)[:, None]
        a, b, c = own.sum(0), (own * lengths).sum(0), (own * lengths**2).sum(0)
        terms[atom] = torch.dot(a, torch.linalg.cross(b, c))
    return per_atom(graph, terms)


def in_single_precision(graph):
    centre, neighbour = graph.edge_index
    positions = graph.positions.float()
    shift = torch.einsum("es,esx->ex", graph.edge_shifts, graph.cells[graph.structure_index][centre]).float()
    vectors = positions[neighbour] - positions[centre] + shift
    terms = envelope(vectors.norm(dim=1), graph.cutoff).double()
    return terms.new_zeros(graph.structures).index_add(0, graph.structure_index[centre], terms)


def with_changed(name, factor):
    def potential(graph, properties):
        found = conservative(honest)(graph, properties)
        return dataclasses.replace(found, **{name: getattr(found, name) * factor}) if name in properties else found

    return potential


def fading_with(fade):
    """A pair energy that ends at the cutoff in a way of its own."""
    return conservative(lambda graph: pair_energy(graph, decay, lambda r, cutoff: fade(1 - r / cutoff)))


def near_pairs(graph, of_cosine, fade=envelope):
    """A three-body energy: a function of the cosine between near edges p ≠ q of an atom, both fading."""
    vectors = edge_vectors(graph)
    centre = graph.edge_index[0]
    near = graph.near.edges
    p, q = torch.nonzero((centre[near][:, None] == centre[near]) & ~torch.eye(len(near), dtype=torch.bool)).T
    p, q = near[p], near[q]
    lengths = vectors.square().sum(dim=1).sqrt()
    cosines = (vectors[p] * vectors[q]).sum(dim=1) / (lengths[p] * lengths[q])
    terms = of_cosine(cosines) * fade(lengths[p], graph.near_cutoff) * fade(lengths[q], graph.near_cutoff)
    return terms.new_zeros(graph.structures).index_add(0, graph.structure_index[centre[p]], terms)


def honest_three_body(graph):
    return honest(graph) + near_pairs(graph, torch.square)


def angles_clamped(cosines):
    """A harmonic bend of the angle, kept away from where acos has no derivative in the way it is often done."""
    return (cosines.clamp(-1 + 1e-7, 1 - 1e-7).acos() - math.pi).square()


class Embedded:
    """Energies of neighbours' densities, which a halo brings; optionally with a mistake."""

    def __init__(self, mistake=None):
        self.mistake = mistake

    def __call__(self, graph, properties, halo=no_halo):
        return conservative_properties(lambda g: (self.energies(g, halo), None), graph, properties)

    def energies(self, graph, halo):
        centre, neighbour = graph.edge_index
        fade = envelope(edge_vectors(graph, halo).square().sum(dim=1).sqrt(), graph.cutoff)
        density = torch.zeros(graph.atoms, dtype=torch.float64).index_add(0, centre, fade)
        if self.mistake == "knows how many atoms are here":
            density = density * (1 + 0.01 * graph.atoms)
        silent = self.mistake == "asks for nothing where there are no atoms" and graph.atoms == 0
        rows = density if silent else halo(density[:, None]).squeeze(1)
        if self.mistake == "asks again where there are ghosts" and len(rows) > graph.atoms:
            rows = halo(rows[: graph.atoms, None]).squeeze(1)
        terms = per_atom(graph, density.new_zeros(graph.atoms).index_add(0, centre, fade * rows[neighbour]))
        if self.mistake == "energy of every part":
            terms = terms + 1.0
        return terms


class WithExperts(nn.Module):
    """Densities of atoms through experts of their elements; `everything` reads the idle ones too, at no weight."""

    def __init__(self, everything=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = MoELayer(2, experts=3, top_k=1, hidden=4, shared_hidden=4).double()
        self.everything = everything

    def forward(self, graph, properties):
        return conservative_properties(lambda g: (self.energies(g), None), graph, properties)

    def energies(self, graph):
        fade = envelope(edge_vectors(graph).square().sum(dim=1).sqrt(), graph.cutoff)
        density = torch.zeros(graph.atoms, dtype=torch.float64).index_add(0, graph.edge_index[0], fade)
        groups = group_rows(graph.elements, graph.atoms_per_element)
        terms = self.layer(torch.stack([density, density.square()], dim=1), groups).sum(dim=1)
        return per_atom(graph, terms + 0.0 * self.layer.experts.down.sum() if self.everything else terms)


class OneParameter(nn.Module):
    """`w² honest + w · another pair energy`, and gradients of it that may be wrong."""

    def __init__(self, mistake=None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.mistake = mistake

    def forward(self, graph, properties):
        found = conservative_properties(lambda g: (self.energies(g), None), graph, properties)
        if found.forces is not None and self.mistake == "forces without history":
            found = dataclasses.replace(found, forces=found.forces.detach())
        if found.stress is not None and self.mistake == "half of the stress' history":
            found = dataclasses.replace(found, stress=(found.stress + found.stress.detach()) / 2)
        return found

    def energies(self, graph):
        # The whole energy is right in value and derivative; its derivative by the weight lacks a factor of two.
        square = self.weight * (self.weight.detach() if self.mistake == "detached factor" else self.weight)
        return square * honest(graph) + self.weight * pair_energy(graph, lambda v, r, g: r)


class Refuses(nn.Module):
    """A potential that knows hydrogen alone and says so, by name or not."""

    def __init__(self, by_name):
        super().__init__()
        self.by_name = by_name

    def forward(self, graph, properties):
        return conservative(honest)(graph, properties)

    def check_elements(self, atomic_numbers):
        from matris_model.elements import CHEMICAL_SYMBOLS

        for z in atomic_numbers:
            if z != 1:
                raise ValueError(f"unknown element {CHEMICAL_SYMBOLS[z]}" if self.by_name else "key error")


HONEST = {
    "pairs": conservative(honest),
    "three bodies": conservative(honest_three_body),
    "embedded": Embedded(),
    "experts": WithExperts(),
    "one parameter": OneParameter(),
    "hydrogen only": Refuses(by_name=True),
}
