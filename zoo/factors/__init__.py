"""Uses of a fitted model: encode and decode, traverse factors, generate, reconstruct, impute, score, and
probe for labels.

All functions here take a trained pair of model and guide, fork the random generator with their own ``seed``, and
leave the caller's random stream unaffected.
"""

from zoo.algebra.missing import Imputation
from zoo.factors.classification import Classification, classify
from zoo.factors.decoding import decode, encode
from zoo.factors.generation import Generated, Reconstruction, generate, reconstruct
from zoo.factors.imputation import impute
from zoo.factors.intervention import Intervention, intervene
from zoo.factors.probing import Probe, probe
from zoo.factors.row_scores import PosteriorScores, posterior_scores
from zoo.factors.scoring import Scores, scores
from zoo.factors.traversal import Decoded, Traversal, interpolate, traverse

__all__ = [
    "Classification",
    "Decoded",
    "Generated",
    "Imputation",
    "Intervention",
    "PosteriorScores",
    "Probe",
    "Reconstruction",
    "Scores",
    "Traversal",
    "classify",
    "decode",
    "encode",
    "generate",
    "impute",
    "interpolate",
    "intervene",
    "posterior_scores",
    "probe",
    "reconstruct",
    "scores",
    "traverse",
]
