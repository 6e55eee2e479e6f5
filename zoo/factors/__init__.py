"""The use of a fitted model's factors: move along them, generate, reconstruct, impute, and ask what they know."""

from zoo.algebra.missing import Imputation
from zoo.factors.decoding import decode, encode
from zoo.factors.generation import Generated, Reconstruction, generate, reconstruct
from zoo.factors.imputation import impute
from zoo.factors.probing import Probe, probe
from zoo.factors.traversal import Decoded, Traversal, interpolate, intervene, traverse

__all__ = [
    "Decoded",
    "Generated",
    "Imputation",
    "Probe",
    "Reconstruction",
    "Traversal",
    "decode",
    "encode",
    "generate",
    "impute",
    "interpolate",
    "intervene",
    "probe",
    "reconstruct",
    "traverse",
]
