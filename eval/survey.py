"""All that an evaluation makes of a split's encodings, in one pass: embeddings, the teacher's scores, and matches."""

from collections.abc import Mapping
from dataclasses import dataclass

from eval.alignments import Alignments, LocalsCollector
from eval.embed import EmbeddingCollector
from eval.embeddings import Embeddings
from eval.encode import Collector, encode
from eval.matching.pairs import PairCollector, Pairs
from manifests.grounding import Grounding
from train.data import RetrievalData
from train.model import RetrievalModel


@dataclass(frozen=True)
class Survey:
    """Of one split by one model; `teacher` is None for a model without ALADIN's, `pairs` where no `truth` was given."""

    embeddings: Embeddings
    teacher: Alignments | None
    pairs: Pairs | None


def survey(
    model: RetrievalModel,
    data: RetrievalData,
    batch_size: int,
    *,
    run: str,
    truth: Mapping[str, Grounding] | None = None,
    share: tuple[int, int] = (0, 1),
    quiet: bool = False,
) -> Survey:
    """Encode every image and caption of `data` once.

    `truth` says which objects words mean (it may be empty); None leaves the matches out. `share` is (rank, count) of
    processes that encode a part each: all of them get the whole embeddings, and nothing else can be asked for. NaN or
    infinite embeddings raise InputError, which names `run`.
    """
    embeddings = EmbeddingCollector(data)
    teacher = LocalsCollector(model.alignment, data) if model.alignment is not None else None
    pairs = PairCollector(model, data) if truth is not None else None
    collectors: list[Collector] = [embeddings, *([teacher] if teacher else []), *(pairs.collectors if pairs else [])]
    encode(model, data, batch_size, collectors, share=share, quiet=quiet)
    device = next(model.parameters()).device if share[1] > 1 else None
    return Survey(
        embeddings=embeddings.embeddings(run, device),
        teacher=teacher.alignments() if teacher else None,
        pairs=pairs.pairs(truth) if pairs else None,
    )
