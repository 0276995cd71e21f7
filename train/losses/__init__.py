"""Ranking losses over a batch's scores, and the regularisers of the bases."""

from train.losses.alignment import alignment_scores
from train.losses.ranking import all_pairs_triplet, diversity, hardest_triplet, info_nce
from train.losses.soft_labels import shared_info_nce, soft_label_kl

__all__ = [
    "alignment_scores",
    "all_pairs_triplet",
    "diversity",
    "hardest_triplet",
    "info_nce",
    "shared_info_nce",
    "soft_label_kl",
]
