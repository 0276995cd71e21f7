"""The exact search finds what a float64 product finds, whatever is searched; and how far off its first pass may be."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.arrays import open_array, save_array
from eval.search import approximate
from eval.search.candidates import Candidates, write_codes
from eval.search.exact import _CodeScan, _FloatScan, nearest, rank
from manifests.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def candidates(folder: Path, views: np.ndarray, context: np.ndarray | None = None) -> Candidates:
    context = np.empty((len(views), 0), np.float32) if context is None else context
    write_codes(folder, views, context, what="vectors")
    return Candidates.open(folder, views, context)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def scores(found: Candidates, queries: np.ndarray, cosine: bool) -> np.ndarray:
    """Float64 scores `[Q, N]`, plainly."""
    length = found.views.length
    views = found.views.rows(slice(None)).astype(float)
    context = found.context.rows(slice(None))[:, 0].astype(float)
    if cosine:
        whole = np.concatenate([views.mean(axis=1), context], axis=1)
        return queries[:, 0].astype(float) @ (whole / np.linalg.norm(whole, axis=1, keepdims=True)).T
    one = [(views @ q[:, :length].T).max(axis=1) + context @ q[:, length:].T for q in queries.astype(float)]
    return np.stack([each.max(axis=1) for each in one])


@pytest.mark.parametrize(
    ("views", "length", "shared", "queries", "vectors", "cosine"),
    [
        (1, 48, 0, 1, 1, False),
        (1, 48, 16, 40, 1, False),
        (1, 33, 7, 300, 1, True),
        (12, 24, 16, 9, 1, False),
        (12, 24, 16, 9, 1, True),
        (1, 48, 0, 5, 12, False),
    ],
)
def test_it_finds_what_a_float64_product_finds(
    tmp_path: Path, views: int, length: int, shared: int, queries: int, vectors: int, cosine: bool
):
    found = candidates(tmp_path, drawn(9001, views, length), drawn(9001, shared, seed=1))
    asked = drawn(queries, vectors, length + shared, seed=2)
    every = scores(found, asked, cosine)
    rows, best = nearest(found, asked, 10, cosine=cosine)
    order = np.argsort(-every, axis=1, kind="stable")[:, :10]
    assert np.array_equal(rows, order)
    assert np.allclose(best, np.take_along_axis(every, order, axis=1), atol=1e-9)
    for scan in (_CodeScan, _FloatScan):
        few = scan(found, asked[:1], 10, cosine).run()[0]
        assert set(order[0]) <= set(few) and len(few) < 900  # the pass does leave most of them out


@pytest.mark.parametrize("outlier", [1, 1000])
def test_no_coarse_score_is_off_by_more_than_the_bound(tmp_path: Path, outlier: float):
    views = drawn(3000, 1, 200)
    views[:, :, 3] *= outlier
    views[17] = 0
    found = candidates(tmp_path, views)
    for asked in (drawn(1, 1, 200, seed=3), drawn(64, 1, 200, seed=4)):
        asked[..., 3] /= outlier
        exact = torch.from_numpy(scores(found, asked, False))
        for kind in (_CodeScan, _FloatScan):
            scan = kind(found, asked, 10, False)
            scale = 63 / np.abs(asked).max(axis=(1, 2))
            off = (scan._scores(slice(0, 3000)).T - exact * torch.from_numpy(scale)[:, None]).abs().amax(dim=1)
            assert (off <= scan.bound).all()
            assert kind is _FloatScan or (off > scan.bound / 1000).all()  # it is no idle bound


def test_equals_go_by_the_lower_index_and_nothing_is_lost_among_near_equals(tmp_path: Path):
    views = np.repeat(drawn(1, 1, 64), 5000, axis=0) + 1e-7 * drawn(5000, 1, 64)
    views[4000:] = views[:1000]
    found = candidates(tmp_path, views)
    asked = drawn(3, 1, 64, seed=5)
    rows, _ = nearest(found, asked, 20)
    every = scores(found, asked, False)
    assert np.array_equal(rows, np.argsort(-every, axis=1, kind="stable")[:, :20])
    same = nearest(candidates(tmp_path, np.repeat(drawn(1, 1, 64), 5000, axis=0)), asked, 20)[0]
    assert np.array_equal(same, np.tile(np.arange(20), (3, 1)))


def test_the_best_may_come_last(tmp_path: Path):
    views = np.sort(drawn(20_000, 2, 32), axis=0)
    found = candidates(tmp_path, views)
    asked = np.abs(drawn(4, 1, 32))
    order = np.argsort(-scores(found, asked, False), axis=1, kind="stable")[:, :10]
    assert np.array_equal(nearest(found, asked, 10)[0], order)


def test_fewer_candidates_than_wanted(tmp_path: Path):
    rows, best = nearest(candidates(tmp_path, drawn(7, 1, 16)), drawn(2, 1, 16, seed=6), 10)
    assert rows.shape == best.shape == (2, 7) and all(sorted(row) == list(range(7)) for row in rows.tolist())


def test_scores_within_a_tie_are_equal(tmp_path: Path):
    views = np.tile(np.array([[[1, 0]]], np.float32), (3, 1, 1))
    views[2, 0, 0] += np.float32(2.0**-23)
    found = candidates(tmp_path, views)
    assert rank(found, np.array([[1.0, 0]], np.float32), np.arange(3), 3)[0].tolist() == [2, 0, 1]
    assert rank(found, np.array([[1e-30, 1.0]], np.float32), np.arange(3), 3)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_what_faiss_finds_is_ranked_exactly(tmp_path: Path, kind: str):
    pytest.importorskip("faiss", reason="FAISS isn't installed")
    found = candidates(tmp_path, drawn(600, 3, 16), drawn(600, 8, seed=1))
    asked = drawn(30, 1, 24, seed=2)
    approximate.build(tmp_path / "v.faiss", found, kind)
    rows, best = approximate.search(tmp_path / "v.faiss", found, asked, 10)
    exact, every = nearest(found, asked, 10)[0], scores(found, asked, False)
    assert np.allclose(best, np.take_along_axis(every, rows, axis=1), atol=1e-9)
    assert (np.diff(best, axis=1) <= 0).all()
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(rows, exact, strict=True)]) > 5


def test_faiss_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(InputError, match=r"selfalign\[faiss\]"):
        approximate.require_faiss()


def test_vectors_without_a_length_are_like_nothing(tmp_path: Path):
    views = drawn(6, 1, 8)
    views[2] = 0
    found = candidates(tmp_path, views)
    rows, cosines = nearest(found, views[3:4], 6, cosine=True)
    assert rows[0, 0] == 3 and cosines[0][rows[0] == 2] == [0]


@pytest.mark.parametrize("length", [0.0, -1.0])
def test_lengths_that_can_not_be_are_refused(tmp_path: Path, length: float):
    views = drawn(6, 1, 8)
    candidates(tmp_path, views)
    norms = np.load(tmp_path / "norms.npy")
    norms[2] = length
    np.save(tmp_path / "norms.npy", norms)
    with pytest.raises(InputError, match=r"norms\.npy: a length is 0 or below"):
        Candidates.open(tmp_path, views, np.empty((6, 0), np.float32))


def resident_kilobytes(file: Path) -> int:
    """How much of a mapped file is this process's resident memory."""
    mapping = Path("/proc/self/smaps").read_text().split(f"{file}\n")[1]
    return int(re.search(r"^Rss: *(\d+) kB$", mapping, re.MULTILINE)[1])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_rows_that_were_read_do_not_stay_resident(tmp_path: Path):
    made, rows = drawn(4096, 1, 1024), np.arange(4)
    save_array(tmp_path / "vectors.npy", made)
    views = open_array(tmp_path / "vectors.npy", "<f4", 3, fix="")
    found = candidates(tmp_path / "codes", views)
    nearest(found, made[rows], 3)
    assert resident_kilobytes(tmp_path / "vectors.npy") == 0
    assert (views[rows] == made[rows]).all() and resident_kilobytes(tmp_path / "vectors.npy") > 0
