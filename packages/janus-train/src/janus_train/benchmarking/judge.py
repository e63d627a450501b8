"""What a calculator says of structures, kept as it comes, so that a long benchmark goes on where it was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from janus_train.failure import UserError

if TYPE_CHECKING:
    from ase import Atoms

T = TypeVar("T")

_JOULES_OF_A_MOLE = 1.602176634e-19 * 6.02214076e23  # the elementary charge and Avogadro's number, exact in the SI
EV_TO_KCAL_PER_MOL = _JOULES_OF_A_MOLE / 4184
"""kcal in an eV for each of a mole."""
EV_TO_KJ_PER_MOL = _JOULES_OF_A_MOLE / 1000
"""kJ in an eV for each of a mole."""

# Seconds between two words on how it gets on.
_SAY_EVERY = 5.0


@dataclass(frozen=True)
class Judgement:
    """What a benchmark says of a calculator.

    Attributes:
        benchmark: its name.
        units: of what is in it, for people.
        summary: the benchmark's own numbers; nested where it has several parts.
        rows: one for each part of the benchmark, with the same keys in each.
        notices: what was left out, and why.
    """

    benchmark: str
    units: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    notices: list[str] = field(default_factory=list)


class Answers:
    """Values by name in a file of JSON lines, which is complete up to its last line whatever happens.

    Args:
        path: of the file, whose first line says what it is about; None keeps nothing.
        about: that line.

    Raises:
        UserError: the file is about something else.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if path is None:
            return
        if path.exists():
            first, *rest = path.read_text().splitlines() or ["{}"]
            if json.loads(first) != dict(about):
                raise UserError(
                    f"{path} holds answers about {first}, not about {json.dumps(dict(about))}; remove it, or choose "
                    "another --output"
                )
            for line in rest:
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the process was killed while it wrote it
                self._known[entry["name"]] = entry["value"]
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [dict(about), *({"name": name, "value": value} for name, value in self._known.items())]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        partial.replace(path)

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value of this name: the one that is known, else what `compute` gives, which is kept."""
        if name not in self._known:
            self._known[name] = compute()
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps({"name": name, "value": self._known[name]}) + "\n")
        return self._known[name]


class Judge:
    """Asks an ASE calculator, once for each structure, and notes what it refuses.

    Args:
        calculator: with energies, and forces and stress where structures are relaxed.
        answers: where its answers are kept.
        relax: whether to relax structures first; None for what the benchmark usually does.
        say: told now and then how it gets on.

    Attributes:
        failures: by the name of a structure, why there is no answer.
    """

    def __init__(
        self,
        calculator: Any,
        answers: Answers | None = None,
        relax: bool | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.calculator, self.relax = calculator, relax
        self.failures: dict[str, str] = {}
        self._answers, self._say = answers or Answers(None, {}), say

    def ask(self, name: str, question: Callable[[], Any]) -> Any:
        """The answer to a question of this name; None where it failed. What it says has to fit into JSON."""
        found = self._answers.get(name, lambda: _answer(question))
        if isinstance(found, dict) and "failed" in found:
            self.failures[name] = str(found["failed"])
            return None
        return found

    def energy(self, name: str, atoms: Atoms) -> float | None:
        """The energy of a structure as it is, eV."""

        def question() -> float:
            asked = atoms.copy()
            asked.calc = self.calculator
            return float(asked.get_potential_energy())

        found = self.ask(name, question)
        return None if found is None else float(found)

    def progress(self, items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
        """The items, with a word now and then on how many of them are done, and how long the rest will take."""
        began = said = time.monotonic()
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - said > _SAY_EVERY:
                said = now
                left = f", {(now - began) / done * (total - done) / 60:.1f} min left" if total and done else ""
                self._say(f"{done}{f' of {total}' if total else ''} {what}{left}")
            yield item

    def notices(self, what: str) -> list[str]:
        """A sentence about what failed; none if nothing did."""
        if not self.failures:
            return []
        names = sorted(self.failures)
        shown = "; ".join(f"{name}: {self.failures[name]}" for name in names[:3])
        return [f"no answer for {len(names)} {what}, which are left out: {shown}{'; …' if len(names) > 3 else ''}"]


def read_structure(path: Path, file_format: str | None = None) -> Atoms:
    """The last structure in a file.

    Raises:
        UserError: it is missing or cannot be read.
    """
    from ase.io import read

    try:
        return read(path, format=file_format)
    except Exception as error:  # readers fail with whatever they stumble over
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def found_file(directory: Path, patterns: Sequence[str], holds: str) -> Path:
    """The one file in a directory, or below, whose name fits one of the patterns.

    Raises:
        UserError: there is none, or several.
    """
    if directory.is_file():
        return directory
    found = sorted({path for pattern in patterns for path in directory.rglob(pattern) if path.is_file()})
    if len(found) != 1:
        there = f"there are {len(found)}: {', '.join(map(str, found[:5]))}" if found else f"none in {directory}"
        raise UserError(f"--data needs one file such as {' or '.join(patterns)}, {holds}; {there}")
    return found[0]


def _answer(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception as error:  # noqa: BLE001  one structure that a potential refuses costs no other
        return {"failed": f"{type(error).__name__}: {error}"}
