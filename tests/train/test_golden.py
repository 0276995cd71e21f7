"""Values and gradients equal the published implementations' on recorded inputs (tests/data/losses.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.concepts import concept_alignment
from train.losses.cra import context_alignment_loss
from train.losses.diversity import diversity
from train.losses.lca import sinkhorn
from train.ranking import all_pairs_triplet, hardest_triplet

GOLDEN = dict(np.load(Path(__file__).parents[1] / "data" / "losses.npz"))


def cases(prefix: str, last: str) -> list[str]:
    return sorted(name[len(prefix) : -len(last)] for name in GOLDEN if name.startswith(prefix) and name.endswith(last))


def tensor(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(GOLDEN[name]).to(dtype)


def close(ours: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(ours.double(), tensor(name), rtol=1e-5, atol=1e-7)


precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@precisions
@pytest.mark.parametrize("case", cases("sk_", "_in"))
def test_sinkhorn(case: str, dtype: torch.dtype) -> None:
    close(sinkhorn(tensor(f"sk_{case}_in", dtype), 0.05, int(GOLDEN[f"sk_{case}_iters"])), f"sk_{case}_out")


@precisions
@pytest.mark.parametrize("case", cases("lca_", "_loss"))
def test_concept_alignment(case: str, dtype: torch.dtype) -> None:
    def golden(name: str) -> torch.Tensor:
        return tensor(f"lca_{case}_{name}", dtype)

    lengths = golden("lens").long()
    words, regions = golden("t").requires_grad_(), golden("v").requires_grad_()
    module = concept_alignment(
        words.shape[-1],
        len(golden("w_in")),
        epsilon=golden("eps").item(),
        sinkhorn_iterations=int(golden("iters")),
    ).to(dtype)
    with torch.no_grad():
        module.codebook.copy_(golden("w_in"))
    loss = module.aligned(regions, words, torch.arange(words.shape[1]) < lengths[:, None])
    loss.backward()
    close(module.codebook.detach(), f"lca_{case}_w_normalised")
    close(loss.detach(), f"lca_{case}_loss")
    close(words.grad, f"lca_{case}_grad_t")
    close(module.codebook.grad, f"lca_{case}_grad_w")
    assert regions.grad is None and not golden("grad_v").any()


@precisions
@pytest.mark.parametrize("case", cases("cra_", "_loss"))
def test_context_alignment(case: str, dtype: torch.dtype) -> None:
    locals_, global_ = tensor(f"cra_{case}_l", dtype).requires_grad_(), tensor(f"cra_{case}_m", dtype).requires_grad_()
    loss = context_alignment_loss(
        locals_,
        global_.squeeze(1),
        temperature=float(GOLDEN[f"cra_{case}_T"]),
        num_negatives=int(GOLDEN[f"cra_{case}_neg"]),
    )
    loss.backward()
    close(loss.detach(), f"cra_{case}_loss")
    close(locals_.grad, f"cra_{case}_grad_l")
    close(global_.grad, f"cra_{case}_grad_m")


@precisions
@pytest.mark.parametrize(("loss", "name"), [(hardest_triplet, "mv1"), (all_pairs_triplet, "mv0")])
def test_triplets(loss, name: str, dtype: torch.dtype) -> None:
    scores = tensor("tri_scores", dtype).requires_grad_()
    value = loss(scores, 0.2)
    value.backward()
    close(value.detach(), f"tri_{name}_loss")
    close(scores.grad, f"tri_{name}_grad")


@precisions
def test_diversity(dtype: torch.dtype) -> None:
    views = tensor("div_in", dtype).requires_grad_()
    loss = diversity(views)
    loss.backward()
    close(loss.detach(), "div_loss")
    close(views.grad, "div_grad")
