"""The files that GMTKN55 comes in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_train.benchmarking.judge import read_structure
from janus_train.failure import UserError

if TYPE_CHECKING:
    from ase import Atoms

# Reactions of a file `.resRC` make a subset of their own.
_RESULT_FILES = {".res": "", ".resRC": "RC"}


@dataclass(frozen=True, eq=False)
class Reaction:
    """A reaction energy: `Σ count · E(molecule)`.

    Attributes:
        subset: that it belongs to.
        molecules: by name, what reads the structure.
        counts: of each, negative for those that are consumed.
        energy: the reference, kcal/mol.
        weight: of its error in a mean, where the file gives one.
    """

    subset: str
    molecules: Mapping[str, Callable[[], Atoms]]
    counts: tuple[float, ...]
    energy: float
    weight: float | None = None


def read_directory(directory: Path) -> list[Reaction]:
    """Reactions of the database's own layout.

    `SUBSET/.res` (for BH76 also `.resRC`) has a line `$tmer {a,b}/$f x -1 1 $w ENERGY` for each reaction; structures
    are `SUBSET/MOLECULE/struc.xyz` or `coord`, their charge and number of unpaired electrons in `.CHRG` and `.UHF`
    beside them, where these are not zero.

    Raises:
        UserError: a line that is not of that form, or a structure that is missing.
    """
    reactions = []
    for path in sorted(path for name in _RESULT_FILES for path in directory.glob(f"*/{name}")):
        subset = path.parent.name + _RESULT_FILES[path.name]
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            words = line.partition("#")[0].split()
            if words and re.fullmatch(r"\$?tmer[^=]*", words[0]):
                try:
                    names, counts, energy = _parse(words[1:])
                except ValueError as error:
                    raise UserError(f"{path}, line {number}: {error} in '{line.strip()}'") from error
                molecules = {f"{path.parent.name}/{name}": _locate(path.parent, name) for name in names}
                reactions.append(Reaction(subset, molecules, counts, energy))
    return reactions


def read_yaml(path: Path) -> list[Reaction]:
    """Reactions of a YAML file: `SUBSET: REACTION: {Energy, Weight, Species: NAME: {Count, Charge, UHF, Elements,
    Positions}}`, kcal/mol and Å; Weight, Charge and UHF may be left out.

    Raises:
        UserError: the file is not of that form.
    """
    import yaml

    try:
        content = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return [
            _reaction_of_yaml(subset, reaction)
            for subset, reactions in content.items()
            for reaction in reactions.values()
        ]
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold subsets of reactions with Energy and Species ({type(error).__name__}: {error})"
        ) from error


def _parse(words: list[str]) -> tuple[list[str], tuple[float, ...], float]:
    """Names, counts and the reference energy of `{a,b}/$f x -1 1 $w ENERGY`."""
    if "x" not in words:
        raise ValueError("no 'x' between molecules and counts")
    at = words.index("x")
    names = [name.split("/")[0] for word in words[:at] for name in _expand(word)]
    try:
        end = next(place for place in range(at + 1, len(words)) if words[place].startswith("$w"))
        counts, energy = tuple(map(float, words[at + 1 : end])), float(words[end + 1])
    except (StopIteration, IndexError, ValueError):
        raise ValueError("no counts, $w and energy after 'x'") from None
    if len(names) != len(counts) or len(set(names)) != len(names):
        raise ValueError(f"{len(names)} molecules and {len(counts)} counts")
    return names, counts, energy


def _expand(word: str) -> Iterator[str]:
    """The words that a shell makes of `01{A,B,}/$f`."""
    braces = re.fullmatch(r"(.*?)\{(.*?)\}(.*)", word)
    if braces is None:
        yield word
        return
    for middle in braces[2].split(","):
        yield from _expand(braces[1] + middle + braces[3])


def _locate(subset: Path, name: str) -> Callable[[], Atoms]:
    for file, file_format in (("struc.xyz", "xyz"), ("coord", "turbomole")):
        if (subset / name / file).exists():
            return partial(_molecule, subset / name, file, file_format)
    raise UserError(f"no structure of {name} in {subset}: neither {name}/struc.xyz nor {name}/coord")


def _molecule(directory: Path, file: str, file_format: str) -> Atoms:
    atoms = read_structure(directory / file, file_format)
    atoms.pbc = False
    unpaired = _whole_number(directory / ".UHF")
    return _with_electrons(atoms, _whole_number(directory / ".CHRG") or 0, unpaired)


def _reaction_of_yaml(subset: str, reaction: Mapping[str, Any]) -> Reaction:
    species: Mapping[str, Mapping[str, Any]] = reaction["Species"]
    weight = reaction.get("Weight")
    return Reaction(
        str(subset),
        {f"{subset}/{name}": partial(_molecule_of_yaml, each) for name, each in species.items()},
        tuple(float(each["Count"]) for each in species.values()),
        float(reaction["Energy"]),
        None if weight is None else float(weight),
    )


def _molecule_of_yaml(species: Mapping[str, Any]) -> Atoms:
    from ase import Atoms

    atoms = Atoms(species["Elements"], positions=species["Positions"])
    return _with_electrons(atoms, int(species.get("Charge", 0)), species.get("UHF"))


def _with_electrons(atoms: Atoms, charge: int, unpaired: int | None) -> Atoms:
    if unpaired is None:
        unpaired = (int(atoms.get_atomic_numbers().sum()) - charge) % 2
    atoms.info = {"charge": charge, "spin": int(unpaired) + 1}
    return atoms


def _whole_number(path: Path) -> int | None:
    if not path.exists():
        return None
    try:
        return int(float(path.read_text().split()[0]))
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} does not hold a whole number") from error
