"""Which structures and which pairs of elements stand for a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations_with_replacement

from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, chemical_symbols
from ase.formula import Formula

from janus_graph.ase import structure_to_ase
from janus_train.data.frame import Frame

# Smaller molecules are dimers, or little more; they come last.
_SMALLEST_MOLECULE = 4


def choose_prototypes(frames: Sequence[Frame], count: int) -> list[Atoms]:
    """At most so many structures of a task that differ in kind: simple ones first, each stoichiometry in turn.

    Crystals of one element are taken in the form that ASE knows of it, others as they are in the frames. Molecules of
    fewer than four atoms and frames with a charge come last, and free atoms not at all.
    """
    found: dict[tuple[str, str], tuple[tuple[bool, bool, int, int, str], Atoms]] = {}
    for frame in frames:
        atoms = _crystal_of_element(frame) or structure_to_ase(frame.structure)
        if len(atoms) == 1 and not atoms.pbc.any():
            continue
        formula = Formula(atoms.get_chemical_formula())
        small = not atoms.pbc.any() and len(atoms) < _SMALLEST_MOLECULE
        order = (frame.structure.charge != 0, small, len(formula.count()), len(atoms), str(formula))
        kind = (str(formula.reduce()[0]), str(atoms.pbc.sum()))
        if kind not in found or order < found[kind][0]:
            found[kind] = (order, atoms)
    in_order = sorted(found.values(), key=lambda pair: pair[0])
    seen: Counter[str] = Counter()
    turns = []
    for place, ((charged, small, *_), atoms) in enumerate(in_order):
        stoichiometry = str(Formula(atoms.get_chemical_formula()).stoichiometry()[0])
        turns.append((charged, small, seen[stoichiometry], place))
        seen[stoichiometry] += 1
    return [in_order[place][1] for *_, place in sorted(turns)[:count]]


def choose_pairs(frames: Sequence[Frame], count: int) -> list[tuple[str, str]]:
    """At most so many pairs of elements: those that most frames hold together, like and unlike."""
    together: Counter[tuple[int, int]] = Counter()
    for frame in frames:
        numbers = Counter(frame.structure.atomic_numbers.tolist())
        for pair in combinations_with_replacement(sorted(numbers), 2):
            if pair[0] != pair[1] or numbers[pair[0]] > 1:
                together[pair] += 1
    ranked = sorted(together, key=lambda pair: (-together[pair], pair))[:count]
    return [(chemical_symbols[first], chemical_symbols[second]) for first, second in sorted(ranked)]


def _crystal_of_element(frame: Frame) -> Atoms | None:
    """The standard crystal of a frame that is a crystal of one element; None for others, and where ASE knows none."""
    numbers = set(frame.structure.atomic_numbers.tolist())
    if len(numbers) != 1 or not frame.structure.has_volume:
        return None
    try:
        crystal = bulk(chemical_symbols[numbers.pop()])
    except (ValueError, RuntimeError, KeyError, NotImplementedError):
        return None
    crystal.info = {"charge": frame.structure.charge, "spin": frame.structure.spin}
    return crystal


def time_step(atoms: Atoms) -> float:
    """A time step in fs that resolves the vibrations of these elements: 0.5 with hydrogen, 1 otherwise."""
    return 0.5 if atomic_numbers["H"] in atoms.get_atomic_numbers() else 1.0
