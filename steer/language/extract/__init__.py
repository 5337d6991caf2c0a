"""From examples to directions: one function for each method, `fit` for those that take preference pairs."""

from __future__ import annotations

from steer.language.extract.act_add import act_add
from steer.language.extract.directions import mean_difference, pca, probe
from steer.language.extract.fitting import fit
from steer.language.extract.iti import iti
from steer.language.extract.melbo import melbo
from steer.language.extract.refusal import everywhere, refusal
from steer.language.extract.sae import SparseAutoencoder, read_sae

__all__ = [
    "SparseAutoencoder",
    "act_add",
    "everywhere",
    "fit",
    "iti",
    "mean_difference",
    "melbo",
    "pca",
    "probe",
    "read_sae",
    "refusal",
]
