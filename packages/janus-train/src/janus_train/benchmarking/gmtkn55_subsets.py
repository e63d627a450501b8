"""The 55 subsets of GMTKN55: what they are about, how many reactions they have, how large their energies are.

Number of reactions and mean absolute reference energy (kcal/mol): L. Goerigk, A. Hansen, C. Bauer, S. Ehrlich,
A. Najibi, S. Grimme, Phys. Chem. Chem. Phys. 2017, 19, 32184, tables 1 to 5.
"""

from __future__ import annotations

from typing import NamedTuple


class Subset(NamedTuple):
    """A subset: its category, number of reactions, and mean absolute reference energy, kcal/mol."""

    category: str
    reactions: int
    mean_energy: float


_TABLE = {
    "basic properties and small reactions":
        "W4-11 140 306.91, G21EA 25 33.62, G21IP 36 257.61, DIPCS10 10 654.26, PA26 26 189.05, SIE4x4 16 33.72, "
        "ALKBDE10 10 100.69, YBDE18 18 49.28, AL2X6 6 35.88, HEAVYSB11 11 58.02, NBPRC 12 27.71, ALK8 8 62.60, "
        "RC21 21 35.70, G2RC 25 51.26, BH76RC 30 21.39, FH51 51 31.01, TAUT15 15 3.05, DC13 13 54.98",
    "large reactions and isomerisations":
        "MB16-43 43 414.73, DARC 14 32.47, RSE43 43 7.60, BSR36 36 16.20, CDIE20 20 4.06, ISO34 34 14.57, "
        "ISOL24 24 21.92, C60ISO 9 98.25, PArel 20 4.63",
    "barrier heights":
        "BH76 76 18.61, BHPERI 26 20.87, BHDIV10 10 45.33, INV24 24 31.85, BHROT27 27 6.27, PX13 13 33.36, "
        "WCPT18 18 34.99",
    "intermolecular interactions":
        "RG18 18 0.58, ADIM6 6 3.36, S22 22 7.30, S66 66 5.47, HEAVY28 28 1.24, WATER27 27 81.14, CARBHB12 12 6.04, "
        "PNICO23 23 4.27, HAL59 59 4.59, AHB21 21 22.49, CHB6 6 26.79, IL16 16 109.04",
    "intramolecular interactions":
        "IDISP 6 14.08, ICONF 17 3.27, ACONF 15 1.83, Amino20x4 80 2.44, PCONF21 18 1.62, MCONF 51 4.97, "
        "SCONF 17 4.60, UPU23 23 5.72, BUT14DIOL 64 2.80",
}  # fmt: skip

SUBSETS: dict[str, Subset] = {
    name: Subset(category, int(reactions), float(mean_energy))
    for category, rows in _TABLE.items()
    for name, reactions, mean_energy in map(str.split, rows.split(","))
}
"""By name."""

MEAN_OF_MEANS = 56.84
"""Mean over the subsets of their mean absolute reference energies, kcal/mol."""
