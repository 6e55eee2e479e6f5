"""The use of a fitted model's factors: move along them, generate, reconstruct, impute, and ask what they know."""

from zoo.factors.decoding import decode, encode
from zoo.factors.imputing import impute
from zoo.factors.moving import Decoded, Traversal, edit, interpolate, traverse
from zoo.factors.predicting import Generated, Reconstruction, generate, reconstruct
from zoo.factors.probing import Probe, probe

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
