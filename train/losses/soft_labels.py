"""Soft labels over a batch (CUSA: Huang et al., AAAI 2024): how alike a uni-modal teacher finds each pair of its items.

The published contrastive term counts other captions of a pair's own image as right answers, and so does this one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from train.precision import sum_dtype


def soft_label_kl(logits: Tensor, teacher: Tensor, tau: float | Tensor, teacher_tau: float | Tensor) -> Tensor:
    """``KL(softmax(teacher / teacher_tau) || softmax(logits / tau))``, row by row, the mean over rows; a scalar.

    Parameters
    ----------
    logits ``[B, B]`` : similarities that learn.
    teacher ``[B, B]`` : the teacher's of the same items; no gradient goes there.
    tau, teacher_tau : temperatures above 0; a tensor `tau` may be learnt.
    """
    dtype = torch.promote_types(sum_dtype(logits), sum_dtype(teacher))
    target = F.log_softmax(teacher.detach().to(dtype) / teacher_tau, dim=1)
    return F.kl_div(F.log_softmax(logits.to(dtype) / tau, dim=1), target, reduction="batchmean", log_target=True)


def shared_info_nce(scores: Tensor, temperature: float | Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE whose right answers are all pairs of the same image, in equal shares; a scalar.

    Parameters
    ----------
    scores ``[B, B]`` : image i against caption j.
    temperature : above 0; a tensor may be learnt.
    same ``[B, B]`` : true where two pairs are of one image, the diagonal included.
    """
    logits = scores / temperature
    share = same.to(logits.dtype) / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, share) + F.cross_entropy(logits.T, share)) / 2
