"""The best candidates of a query, exactly, although most of the work is done in 8 bits.

A product of codes differs from the exact score by at most a bound, which follows from the vectors' rounding error
(`eval.search.candidates`). A candidate can only be among the K best if its score plus the bound reaches the K-th best
score less the bound. These few candidates are scored in float64. If they are many, as with a hardly trained model, the
scan is repeated in float32, and then in float64 alone.

Scores within `eval.scores.TIE` of each other count as equal, and the lower index wins, as in the evaluation.
Q queries of m vectors each (a caption has one, an image as many as views), N candidates.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from eval.scores import TIE, tensor
from eval.search.candidates import Candidates, Part
from manifests.errors import InputError

BLOCK_SCORES = 1 << 21  # scores made at a time: they stay in the cache
MOST_ROWS = 1 << 16
DEVICE_SCORES, DEVICE_ROWS = 1 << 26, 1 << 22  # the same where the codes lie on a GPU
DEVICE_NUMBERS = 1 << 29  # of full-precision vectors that are sent there, or multiplied there in float32, together
FIRST_ROWS = 1 << 12  # the first block, which says from where on a score is worth keeping
QUERIES = 256  # searched in one pass
FEW = 1024  # candidates of a query that may be left for float64; of many more than 32 * FEW, a 32nd
# A query's codes stay below 64, and their rounding error is coded once more: processors without VNNI add two products
# of 8 bits in 16, and 2 x 255 x 63 fits.
QUERY_CODES = 63
FINER = 2 * QUERY_CODES
FINER_QUERIES = 8  # up to so many vectors: more would cost more than the better bound saves


def nearest(
    candidates: Candidates, queries: np.ndarray, count: int, *, cosine: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best candidates of each query (or all there are), best first: rows int64 `[Q, K]`, scores `[Q, K]`.

    Parameters
    ----------
    queries : `[Q, m, P + S]`, float32. A score is the best over a query's vectors and a candidate's views.
    cosine : instead, the cosine of a query's one vector with the mean of a candidate's views beside its context.
    """
    count = min(count, len(candidates))
    rows = np.empty((len(queries), count), np.int64)
    scores = np.empty((len(queries), count))
    for start in range(0, len(queries), QUERIES):
        part = slice(start, min(start + QUERIES, len(queries)))
        for number, (found, score) in enumerate(_nearest(candidates, queries[part], count, cosine), start):
            rows[number], scores[number] = found, score
    return rows, scores


def rank(
    candidates: Candidates, query: np.ndarray, rows: np.ndarray, count: int, *, cosine: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best of the candidates in `rows [M]`, rising, for one query `[m, P + S]`: rows and float64 scores."""
    scores = np.empty(len(rows))
    step = max(1, BLOCK_SCORES // max(1, candidates.numbers))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        scores[part] = _exact(candidates, query, rows[part], cosine)
    candidates.release()
    if not np.isfinite(scores).all():
        raise InputError(
            "vectors or lengths are NaN or infinite", where="index", fix="make the index again: `selfalign index`"
        )
    tie = TIE * _largest(candidates, query, cosine)
    order = np.argsort(-scores, kind="stable")
    level = np.cumsum(np.append(0, -np.diff(scores[order]) > tie))
    order = order[np.lexsort((rows[order], level))][:count]
    return rows[order], scores[order]


def _nearest(
    candidates: Candidates, queries: np.ndarray, count: int, cosine: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    left: dict[int, np.ndarray | None] = dict.fromkeys(range(len(queries)))
    for scan in (_CodeScan, _FloatScan):
        undecided = [number for number, found in left.items() if found is None]
        if undecided:
            scan = scan(candidates, queries[undecided], count, cosine)
            left |= dict(zip(undecided, scan.run(), strict=True))
    every = np.arange(len(candidates))
    return [
        rank(candidates, query, every if found is None else found, count, cosine=cosine)
        for query, found in zip(queries, left.values(), strict=True)
    ]


@dataclass
class _Pool:
    """The candidates that may be among the best of their query: `query`, `row` and coarse `score`, `[M]` each."""

    query: np.ndarray
    row: np.ndarray
    score: np.ndarray

    def where(self, kept: np.ndarray) -> "_Pool":
        return _Pool(self.query[kept], self.row[kept], self.score[kept])


class _Scan(ABC):
    """One pass over all candidates in one precision. Queries are scaled so that `QUERY_CODES` is their greatest number,
    which changes no order.

    Attributes
    ----------
    bound : `[Q]` float32, the largest error of a query's scores.
    """

    def __init__(self, candidates: Candidates, queries: np.ndarray, count: int, cosine: bool):
        self.candidates, self.count, self.cosine = candidates, count, cosine
        self.shape = queries.shape[:2]
        length = candidates.views.length
        scaled = queries * (QUERY_CODES / np.maximum(np.abs(queries).max(axis=(1, 2), keepdims=True), 1e-30))
        flat = torch.from_numpy(scaled.astype(np.float32)).view(-1, queries.shape[2])
        parts = (candidates.views, flat[:, :length]), (candidates.context, flat[:, length:])
        self.device = candidates.device
        self.parts = [(part, self.prepare(own).to(self.device)) for part, own in parts if part.length]
        bounds = sum(self.error_bound(part, own) for part, own in parts if part.length).view(self.shape).amax(dim=1)
        self.norms = torch.from_numpy(candidates.norms).float().to(self.device) if cosine else None
        self.bound = (bounds / candidates.norms.min() if cosine else bounds).float()
        self.few = max(FEW, 4 * count, len(candidates) // 32)

    @abstractmethod
    def prepare(self, queries: torch.Tensor) -> torch.Tensor:
        """One part of the queries, `[Q m, P]`, as `products` reads it."""

    @abstractmethod
    def products(self, part: Part, rows: slice, queries: torch.Tensor) -> torch.Tensor:
        """Products `[M k, Q m]` of some candidates' part with the queries', float32."""

    @abstractmethod
    def error_bound(self, part: Part, queries: torch.Tensor) -> torch.Tensor:
        """The largest error of `products`, float64 `[Q m]`, for queries `[Q m, P]`."""

    def run(self) -> list[np.ndarray | None]:
        """The rows, rising, that may be among each query's best; None where they are too many."""
        total, queries = len(self.candidates), self.shape[0]
        pool = _Pool(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        cut = torch.full((queries,), -torch.inf)
        given_up = np.zeros(queries, bool)
        most, most_rows = BLOCK_SCORES, MOST_ROWS
        if self.device.type != "cpu":
            most, most_rows = DEVICE_SCORES, min(DEVICE_ROWS, DEVICE_NUMBERS // self.candidates.numbers)
        height = most // (self.shape[0] * self.shape[1] * self.candidates.views.codes.shape[1])
        start, stop = 0, min(total, max(FIRST_ROWS, self.count))
        while start < total:
            scores = self._scores(slice(start, stop))
            if start == 0:
                cut = scores.topk(self.count, dim=0).values[-1].cpu() - 2 * self.bound
            row, query = (scores >= cut.to(self.device)).nonzero(as_tuple=True)
            if len(row):
                new = _Pool(*(x.cpu().numpy() for x in (query, row + start, scores[row, query])))
                pool, cut = self._merge(pool, new, cut, given_up)
            start, stop = stop, min(total, stop + min(max(height, FIRST_ROWS), max(most_rows, FIRST_ROWS)))
        found = np.split(pool.row, np.searchsorted(pool.query, np.arange(1, queries)))
        return [None if lost else np.sort(rows) for lost, rows in zip(given_up, found, strict=True)]

    def _merge(self, pool: _Pool, new: _Pool, cut: torch.Tensor, given_up: np.ndarray) -> tuple[_Pool, torch.Tensor]:
        """Both pools without those that can't be among the best any more, by query, and where the cut is now."""
        pool = _Pool(*(np.concatenate(both) for both in zip(_columns(pool), _columns(new), strict=True)))
        pool = pool.where(np.lexsort((-pool.score, pool.query)))
        first = np.searchsorted(pool.query, np.arange(len(given_up) + 1))
        full = np.flatnonzero(np.diff(first) >= self.count)
        reached = cut.clone()
        last = torch.from_numpy(pool.score[first[full] + self.count - 1])
        reached[full] = torch.maximum(reached[full], last - 2 * self.bound[full])
        pool = pool.where(pool.score >= reached.numpy()[pool.query])
        given_up |= np.bincount(pool.query, minlength=len(given_up)) > self.few
        reached[given_up] = torch.inf
        return pool.where(~given_up[pool.query]), reached

    def _scores(self, rows: slice) -> torch.Tensor:
        """Coarse scores `[M, Q]`."""
        (views, queries), *context = self.parts
        each = views.codes.shape[1]
        scores = self.products(views, rows, queries)
        if each > 1:
            scores = scores.view(-1, each, scores.shape[1])
            scores = scores.mean(dim=1) if self.cosine else scores.amax(dim=1)
        for part, queries in context:
            scores += self.products(part, rows, queries)
        if self.shape[1] > 1:
            scores = scores.view(-1, *self.shape).amax(dim=2)
        return scores / self.norms[rows, None] if self.cosine else scores


class _CodeScan(_Scan):
    """In 8 bits: sums of whole numbers, which are exact."""

    def prepare(self, queries: torch.Tensor) -> torch.Tensor:
        """The codes of the queries, int8 `[P, ...]`. Of few queries, the codes of their rounding errors follow."""
        return torch.cat(_codes(queries)).T.contiguous()

    def products(self, part: Part, rows: slice, queries: torch.Tensor) -> torch.Tensor:
        block = part.codes[rows]
        found = _whole_products(block.view(-1, block.shape[2]), queries)
        if queries.shape[1] > self.shape[0] * self.shape[1]:
            codes, finer = found.chunk(2, dim=1)
            found = codes + finer / FINER
        return found.mul_(part.scales[rows].view(-1, 1))

    def error_bound(self, part: Part, queries: torch.Tensor) -> torch.Tensor:
        """The error of a product when a candidate is rounded: at most the length of that rounding error times the
        query's length. The same holds with the two exchanged (Cauchy and Schwarz). Whole numbers above 2^24, sums and
        scales are rounded a few times, by 2^-24 of their largest value."""
        coded = sum(codes.double() / step for codes, step in zip(_codes(queries), (1, FINER), strict=False))
        own, left = queries.double().norm(dim=1), (queries.double() - coded).norm(dim=1)
        return part.rounding * own + (part.longest + part.rounding) * left + 2.0**-18 * part.longest * own


class _FloatScan(_Scan):
    """In float32, from the vectors in full precision."""

    def prepare(self, queries: torch.Tensor) -> torch.Tensor:
        return queries.T.contiguous()

    def products(self, part: Part, rows: slice, queries: torch.Tensor) -> torch.Tensor:
        block = tensor(part.rows(rows), torch.float32).to(self.device)
        return block.view(-1, block.shape[2]) @ queries

    def error_bound(self, part: Part, queries: torch.Tensor) -> torch.Tensor:
        """The error of a sum of n products: less than n 2^-24 of the lengths, in any order. The rest is for rounding
        after the sum. Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1."""
        return (part.length + 64) * 2.0**-23 * part.longest * queries.double().norm(dim=1)


def _whole_products(codes: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Products float32 `[M, Q]` of int8 `[M, P]` and `[P, Q]`.

    A GPU's 8-bit product takes more than 16 rows, and other sides that 8 divides. Float32 gives the same sums below
    2^24. `_CodeScan.error_bound` allows for the rounding of larger ones.
    """
    if codes.device.type == "cpu":
        return torch._int_mm(codes, queries).float()
    if len(codes) <= 16 or codes.shape[1] % 8:
        return codes.float() @ queries.float()
    padded = torch.nn.functional.pad(queries, (0, -queries.shape[1] % 8))
    return torch._int_mm(codes, padded)[:, : queries.shape[1]].float()


def _codes(queries: torch.Tensor) -> list[torch.Tensor]:
    """Codes int8 `[M, P]` of queries `[M, P]` and, of few, of their rounding errors, in steps of 1 / FINER."""
    codes = queries.round()
    found = [codes, ((queries - codes) * FINER).round()] if len(queries) <= FINER_QUERIES else [codes]
    return [each.clamp(-QUERY_CODES, QUERY_CODES).to(torch.int8) for each in found]


def _columns(pool: _Pool) -> tuple[np.ndarray, ...]:
    return pool.query, pool.row, pool.score


def _exact(candidates: Candidates, query: np.ndarray, rows: np.ndarray, cosine: bool) -> np.ndarray:
    """Float64 scores `[M]` of some candidates with one query."""
    query = query.astype(np.float64)
    length = candidates.views.length
    views = candidates.views.rows(rows).astype(np.float64)
    context = candidates.context.rows(rows)[:, 0].astype(np.float64)
    if cosine:
        views = views.mean(axis=1)
        norms = np.sqrt((views**2).sum(axis=1) + (context**2).sum(axis=1))
        return (views @ query[0, :length] + context @ query[0, length:]) / np.maximum(norms, 1e-30)
    best = (views @ query[:, :length].T).max(axis=1)
    return (best + context @ query[:, length:].T).max(axis=1)


def _largest(candidates: Candidates, query: np.ndarray, cosine: bool) -> float:
    longest = np.hypot(candidates.views.longest, candidates.context.longest)
    own = float(np.sqrt((query.astype(np.float64) ** 2).sum(axis=1).max()))
    return own if cosine else longest * own
