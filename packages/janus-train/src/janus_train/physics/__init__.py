"""What a potential says of physics: pure functions of an ASE calculator and a structure, and the card of a model.

Every file holds one quantity. None knows where the calculator comes from, and all of them work with any.
"""

from janus_train.physics.dimer import DimerCurve, dimer_curve
from janus_train.physics.dynamics import ConstantEnergyRun, constant_energy_run
from janus_train.physics.elasticity import ElasticConstants, elastic_constants
from janus_train.physics.equation_of_state import EquationOfState, equation_of_state, fit_birch_murnaghan
from janus_train.physics.phonons import PhononBands, phonon_bands
from janus_train.physics.relax import Relaxation, relax

__all__ = [
    "ConstantEnergyRun",
    "DimerCurve",
    "ElasticConstants",
    "EquationOfState",
    "PhononBands",
    "Relaxation",
    "constant_energy_run",
    "dimer_curve",
    "elastic_constants",
    "equation_of_state",
    "fit_birch_murnaghan",
    "phonon_bands",
    "relax",
]
