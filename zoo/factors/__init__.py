"""The use of a fitted model's factors: move along them, generate, reconstruct, impute, and ask what they know."""

from zoo.factors.decoding import decode, encode
from zoo.factors.generation import Generated, Reconstruction, generate, reconstruct
from zoo.factors.imputation import impute
from zoo.factors.probing import Probe, probe
from zoo.factors.traversal import Decoded, Traversal, edit, interpolate, traverse

__all__ = [
    "Decoded",
    "Generated",
    "Probe",
    "Reconstruction",
    "Traversal",
    "decode",
    "edit",
    "encode",
    "generate",
    "impute",
    "interpolate",
    "probe",
    "reconstruct",
    "traverse",
]
