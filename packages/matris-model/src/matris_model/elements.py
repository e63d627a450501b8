"""Chemical symbols, for messages that people read. ASE has them too, but is an extra."""

from __future__ import annotations

from collections.abc import Collection

CHEMICAL_SYMBOLS: tuple[str, ...] = (
    "X",
    *"H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr".split(),
    *"Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu".split(),
    *"Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr".split(),
    *"Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og".split(),
)
"""Symbol of each atomic number; X for 0, which is no element."""


def refuse_unseen_elements(atomic_numbers: Collection[int], known: Collection[int]) -> None:
    """Raises ValueError naming the elements that a model was not trained for; one that names none knows all."""
    if known and (unseen := sorted(set(atomic_numbers) - set(known))):
        raise ValueError(
            f"this model has not seen {', '.join(CHEMICAL_SYMBOLS[z] for z in unseen)} in training; it knows "
            f"{', '.join(CHEMICAL_SYMBOLS[z] for z in known)}"
        )
