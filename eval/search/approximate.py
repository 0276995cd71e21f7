"""Approximate search with FAISS, which is optional: graphs (HNSW) or inverted lists (IVF) over full-precision vectors.

Hits of FAISS are ranked again exactly, so scores and their order are right; only candidates may be missing. Of
images of several views, each view beside the context that they share is a vector of its own.
"""

from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np

from eval.search.candidates import Candidates
from eval.search.exact import rank
from manifests.errors import InputError
from manifests.files import atomic

NEIGHBOURS, BUILD_DEPTH, SEARCH_DEPTH = 32, 200, 128
MOST_TRAINED_ON = 100_000
WIDER = 4  # times as many vectors are asked for as candidates are wanted
BLOCK = 1 << 14


def require_faiss() -> ModuleType:
    """FAISS; InputError where it isn't installed."""
    try:
        import faiss
    except ImportError as error:
        raise InputError(
            "FAISS isn't installed", where="selfalign index --kind", fix='`pip install "selfalign[faiss]"`'
        ) from error
    return faiss


def build(path: Path, candidates: Candidates, kind: Literal["hnsw", "ivf"]) -> None:
    """Write FAISS's index of all vectors of `candidates`; they are held in memory meanwhile."""
    faiss = require_faiss()
    each, length = candidates.views.codes.shape[1], candidates.views.length + candidates.context.length
    total = len(candidates) * each
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(length, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_DEPTH, SEARCH_DEPTH
    else:
        lists = max(1, min(round(4 * total**0.5), total // 40))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(length), length, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(lists, max(8, lists // 16))
        picked = np.sort(np.random.default_rng(0).permutation(len(candidates))[: max(1, MOST_TRAINED_ON // each)])
        index.train(_vectors(candidates, picked))
    for start in range(0, len(candidates), BLOCK):
        index.add(_vectors(candidates, np.arange(start, min(start + BLOCK, len(candidates)))))
    with atomic(path) as temporary:
        faiss.write_index(index, str(temporary))


def search(path: Path, candidates: Candidates, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """As `eval.search.exact.nearest`, of those candidates that FAISS finds; where it finds fewer than `count`, the
    first of the others fill up."""
    faiss = require_faiss()
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise InputError(f"FAISS can't read it ({error})", where=path, fix="make the index again") from error
    each = candidates.views.codes.shape[1]
    count = min(count, len(candidates))
    wide = min(WIDER * count * each, len(candidates) * each)
    flat = np.ascontiguousarray(queries.reshape(-1, queries.shape[2]), np.float32)
    found = index.search(flat, wide)[1].reshape(len(queries), -1)
    rows, scores = np.empty((len(queries), count), np.int64), np.empty((len(queries), count))
    for number, (query, near) in enumerate(zip(queries, found, strict=True)):
        near = np.unique(near[near >= 0] // each)
        if len(near) < count:
            near = np.union1d(near, np.setdiff1d(np.arange(min(2 * count, len(candidates))), near)[: count - len(near)])
        rows[number], scores[number] = rank(candidates, query, near, count)
    return rows, scores


def _vectors(candidates: Candidates, rows: np.ndarray) -> np.ndarray:
    """The views of some candidates, each beside the context, `[M k, P + S]`."""
    views = candidates.views.rows(rows)
    context = candidates.context.rows(rows).repeat(views.shape[1], axis=1)
    return np.ascontiguousarray(np.concatenate([views, context], axis=2).reshape(-1, views.shape[2] + context.shape[2]))
