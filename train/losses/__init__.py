"""Ranking losses over a batch's scores, distillation from one model's into another's, and the bases' regularisers."""

from train.losses.alignment import alignment_scores
from train.losses.distillation import affine_mse, listnet, ordinal
from train.losses.ranking import all_pairs_triplet, diversity, hardest_triplet, info_nce
from train.losses.soft_labels import shared_info_nce, soft_label_kl

__all__ = [
    "affine_mse",
    "alignment_scores",
    "all_pairs_triplet",
    "diversity",
    "hardest_triplet",
    "info_nce",
    "listnet",
    "ordinal",
    "shared_info_nce",
    "soft_label_kl",
]
