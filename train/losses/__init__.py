"""Ranking losses over a batch's scores, and the regularisers of the bases."""

from train.losses.ranking import all_pairs_triplet, hardest_triplet, info_nce

__all__ = ["all_pairs_triplet", "hardest_triplet", "info_nce"]
