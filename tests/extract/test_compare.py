"""`selfalign compare`: which stores are identical, equivalent and different, and how far apart it says they are."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.check.compare import Comparison, Tolerances, match, run
from extract.stores.recipe import write_recipe
from extract.stores.regions import INDEX, Regions, RegionStore, write_shard
from extract.vision.decode import decode
from extract.vision.loading import load_detector
from manifests.errors import InputError
from manifests.files import sha256, write_json
from manifests.tables import Manifest
from tests.extract.region_files import Pictures, contents, region_settings

Edit = Callable[[int, Regions], Regions]


def unchanged(row: int, regions: Regions) -> Regions:
    return regions


def rewritten(source: Path, out: Path, edit: Edit = unchanged, rows: Sequence[int] = (), **recipe: object) -> Path:
    """Write the store `source` again in one ragged shard, with `edit` applied to every picture (or those of `rows`)."""
    store = RegionStore(source)
    rows = rows or range(len(store))
    ids = [store.ids[row] for row in rows]
    regions = [edit(row, store.regions(row)) for row in rows]
    out.mkdir()
    recipe_hash = write_recipe(out, store.recipe | recipe)
    dim = regions[0].features.shape[1]
    write_shard(out / "000000.h5", ids, regions, recipe_hash, dim=dim, dense=None, id_bytes=20)
    digest = sha256(out / "000000.h5")
    shard = {"file": "000000.h5", "count": len(ids), "first": ids[0], "last": ids[-1], "sha256": digest}
    write_json(out / INDEX, store.index | {"images": len(ids), "dim": dim, "layout": "ragged", "shards": [shard]})
    return out


def compared(a: Path, b: Path, **tolerances: float) -> Comparison:
    return run(a=a, b=b, tolerances=Tolerances(**tolerances))


def taken(regions: Regions, rows: np.ndarray) -> Regions:
    """The regions `rows`, in that order."""
    names = ("features", "boxes", "objects_id", "objects_conf", "attrs_id", "attrs_conf")
    return replace(regions, **{name: getattr(regions, name)[rows] for name in names})


def shuffled(row: int, regions: Regions) -> Regions:
    return taken(regions, np.random.default_rng(row).permutation(len(regions)))


def noisy(scale: float) -> Edit:
    """Adds noise of `scale` to all features; float16 rounds it."""

    def edit(row: int, regions: Regions) -> Regions:
        noise = np.random.default_rng(row).normal(0, scale, regions.features.shape)
        return replace(regions, features=(regions.features + noise).astype(np.float16))

    return edit


def only(row: int, edit: Edit) -> Edit:
    """Applies `edit` to one picture."""
    return lambda number, regions: edit(number, regions) if number == row else regions


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ragged", "dense"])
def test_a_store_is_identical_to_itself_and_stays_as_it_is(name: str, request: pytest.FixtureRequest) -> None:
    store = request.getfixturevalue(name).out
    before = contents(store)
    comparison = compared(store, store)
    assert comparison.verdict == "identical" and comparison.reasons == [] and comparison.recipe_difference is None
    summary = comparison.summary()
    assert summary["identical_images"] == summary["images"] == len(RegionStore(store))
    assert summary["matched_share"] == summary["centred_least_row"] == 1 and summary["max_abs"] == 0
    assert contents(store) == before


def test_other_shards_of_the_same_arrays_are_identical(dense: Pictures, tmp_path: Path) -> None:
    assert compared(dense.out, rewritten(dense.out, tmp_path / "b")).verdict == "identical"


def test_permuted_rows_are_equivalent(ragged: Pictures, tmp_path: Path) -> None:
    comparison = compared(ragged.out, rewritten(ragged.out, tmp_path / "b", shuffled))
    summary = comparison.summary()
    assert comparison.verdict == "equivalent" and summary["identical_images"] < summary["images"]
    assert summary["matched_share"] == summary["centred_least_row"] == summary["same_objects"] == 1
    assert summary["max_abs"] == 0


def test_another_order_of_images_is_equivalent(ragged: Pictures, tmp_path: Path) -> None:
    b = rewritten(ragged.out, tmp_path / "b", rows=(3, 0, 1, 2, 4, 5, 6, 7, 8, 9))
    comparison = compared(ragged.out, b)
    assert comparison.verdict == "equivalent" and not comparison.same_order
    assert "in another order" in comparison.text()


def test_noise_is_judged_by_the_tolerance(dense: Pictures, tmp_path: Path) -> None:
    b = rewritten(dense.out, tmp_path / "b", lambda row, regions: noisy(0.02)(row, shuffled(row, regions)))
    comparison = compared(dense.out, b)
    assert comparison.verdict == "equivalent" and 0.999 < comparison.summary()["centred_least_image"] < 1
    assert 0.05 < comparison.summary()["max_abs"] < 0.2
    strict = compared(dense.out, b, cosine=0.99999)
    assert strict.verdict == "different" and "centred cosine below 0.99999" in strict.reasons[0]
    (reason,) = compared(dense.out, b, max_abs=0.05).reasons
    assert "above 0.05" in reason


def test_noise_above_the_tolerance_is_different(dense: Pictures, tmp_path: Path) -> None:
    comparison = compared(dense.out, rewritten(dense.out, tmp_path / "b", noisy(0.5)))
    assert comparison.verdict == "different" and "15 images have a centred cosine below 0.999" in comparison.reasons[0]


def test_one_wrong_image_among_all_is_different_and_named(dense: Pictures, tmp_path: Path) -> None:
    comparison = compared(dense.out, rewritten(dense.out, tmp_path / "b", only(6, noisy(0.5))))
    (reason,) = comparison.reasons
    assert reason.startswith("1 images") and "id-006.png" in reason
    assert "furthest apart\n  id-006.png: centred 0." in comparison.text()


def test_swapped_colour_channels_are_different(dense: Pictures, tmp_path: Path) -> None:
    """The classic silent mistake: the network sees BGR where it was trained on RGB."""
    settings = region_settings()
    detector = load_detector(settings.detector, settings.selection)
    rows = list(Manifest.open(dense.manifest).captioned)

    def swapped(row: int, regions: Regions) -> Regions:
        picture = decode((dense.images / rows[row].path).read_bytes())
        pixels = detector.prepare(np.ascontiguousarray(picture[..., ::-1]))
        (found,) = detector.detect(torch.stack([pixels]), [regions.image_size])
        return found

    comparison = compared(dense.out, rewritten(dense.out, tmp_path / "b", swapped, pixels="BGR"), iou=0.5)
    summary = comparison.summary()
    assert comparison.verdict == "different"
    assert summary["centred"] < 0.6 < 0.7 < summary["cosine"]  # the raw cosine hides half of it
    assert summary["same_attributes"] < 0.5
    assert comparison.recipe_difference == ("pixels", None, "BGR")


def test_fewer_boxes_are_different_and_count_as_unmatched(dense: Pictures, tmp_path: Path) -> None:
    b = rewritten(dense.out, tmp_path / "b", lambda row, regions: taken(regions, np.arange(9)))
    for first, second in ((dense.out, b), (b, dense.out)):
        comparison = compared(first, second)
        assert comparison.verdict == "different" and comparison.matched_share == 0.75
        assert "75.00% of the boxes match" in comparison.reasons[0]
        assert comparison.summary()["centred_least_row"] == 1
    assert compared(dense.out, b, matched=0.75).verdict == "equivalent"


def test_moved_boxes_do_not_match(dense: Pictures, tmp_path: Path) -> None:
    def moved(row: int, regions: Regions) -> Regions:
        return replace(regions, boxes=regions.boxes + 300)

    comparison = compared(dense.out, rewritten(dense.out, tmp_path / "b", only(2, moved)), matched=0.9)
    assert comparison.reasons == ["1 images have no box in common, the first id-002.png"]
    (picture,) = comparison.as_json()["pictures"]
    assert picture["matched"] == 0 and picture["centred"] is None and picture["max_abs"] is None


def test_images_in_one_store_only_are_named(ragged: Pictures, tmp_path: Path) -> None:
    b = rewritten(ragged.out, tmp_path / "b", rows=tuple(range(1, 10)))
    comparison = compared(ragged.out, b)
    assert (comparison.only_in_a, comparison.only_in_b) == (["id-000.png"], []) and comparison.same_order
    assert comparison.reasons == ["1 images are only in A, the first id-000.png"]
    assert compared(b, ragged.out).only_in_b == ["id-000.png"]


def test_stores_without_a_common_image_are_different(ragged: Pictures, tmp_path: Path) -> None:
    a = rewritten(ragged.out, tmp_path / "a", rows=(0, 1))
    comparison = compared(a, rewritten(ragged.out, tmp_path / "b", rows=(2, 3)))
    assert comparison.verdict == "different" and comparison.summary()["centred"] is None
    json.dumps(comparison.as_json(), allow_nan=False)
    assert "0 in both" in comparison.text()


def test_nan_is_different_unless_it_is_in_both(dense: Pictures, tmp_path: Path) -> None:
    def spoilt(row: int, regions: Regions) -> Regions:
        features = regions.features.copy()
        features[3, 5] = np.nan
        return replace(regions, features=features)

    b = rewritten(dense.out, tmp_path / "b", only(4, spoilt))
    for first, second in ((dense.out, b), (b, dense.out)):
        comparison = compared(first, second)
        assert comparison.reasons == ["1 images have NaN or infinite features, the first id-004.png"]
        json.dumps(comparison.as_json(), allow_nan=False)
    assert compared(b, b).verdict == "identical"


def test_features_of_another_length_are_different(dense: Pictures, tmp_path: Path) -> None:
    b = rewritten(dense.out, tmp_path / "b", lambda row, regions: replace(regions, features=regions.features[:, :100]))
    comparison = compared(dense.out, b)
    assert comparison.reasons == ["a feature has 256 numbers in A, 100 in B"] and comparison.matched_share == 1


def test_another_image_size_is_different(dense: Pictures, tmp_path: Path) -> None:
    b = rewritten(dense.out, tmp_path / "b", only(1, lambda row, regions: replace(regions, image_size=(999, 999))))
    assert compared(dense.out, b).reasons == ["1 images have another size, the first id-001.png"]


# -- what is reported -------------------------------------------------------------------------------------------------


def test_numbers_equal_a_plain_computation(dense: Pictures, tmp_path: Path) -> None:
    b = rewritten(dense.out, tmp_path / "b", noisy(0.2))
    ours, theirs = RegionStore(dense.out), RegionStore(b)
    centre = np.concatenate([ours.regions(row).features for row in range(15)]).astype(float).mean(0)
    for picture in compared(dense.out, b).pictures:
        x, y = (store.regions(store.row(picture.image_id)).features.astype(float) for store in (ours, theirs))
        for name, shift in (("cosine", 0), ("centred", centre)):
            expected = [
                (u - shift) @ (v - shift) / np.linalg.norm(u - shift) / np.linalg.norm(v - shift)
                for u, v in zip(x, y, strict=True)
            ]
            assert getattr(picture, name) == pytest.approx(np.mean(expected), abs=1e-5)
            assert getattr(picture, f"{name}_least") == pytest.approx(np.min(expected), abs=1e-5)
        assert picture.max_abs == pytest.approx(np.abs(x - y).max(), abs=1e-6)


def test_the_histogram_counts_every_image_once(dense: Pictures, tmp_path: Path) -> None:
    comparison = compared(dense.out, rewritten(dense.out, tmp_path / "b", only(0, noisy(0.5))))
    histogram = comparison.as_json()["histogram"]
    assert len(histogram["images"]) == len(histogram["edges"]) + 1 and sum(histogram["images"]) == 15
    assert histogram["images"][-1] == 14
    bars = [line for line in comparison.text().splitlines() if "|" in line]
    assert len(bars) == len(histogram["images"]) and bars[0].endswith("# 14")
    assert sum(int(line.split()[-1]) for line in bars) == 15


def test_the_first_differing_key_of_the_recipes_is_named(ragged: Pictures, tmp_path: Path) -> None:
    selection = RegionStore(ragged.out).recipe["selection"] | {"nms_threshold": 0.4}
    comparison = compared(ragged.out, rewritten(ragged.out, tmp_path / "b", selection=selection))
    assert comparison.recipe_difference == ("selection.nms_threshold", 0.3, 0.4)
    assert comparison.verdict == "identical"
    assert "differs, first at selection.nms_threshold: 0.3 in A, 0.4 in B" in comparison.text()


def test_classes_are_compared_by_their_names(dense: Pictures, tmp_path: Path) -> None:
    names = RegionStore(dense.out).object_names
    assert names

    def moved(row: int, regions: Regions) -> Regions:
        return replace(regions, objects_id=(regions.objects_id + 1) % len(names))

    other = rewritten(dense.out, tmp_path / "b", moved)
    assert "0.00% of the matched boxes have the same object class" in compared(dense.out, other).text()
    write_json(other / INDEX, json.loads((other / INDEX).read_text()) | {"object_names": [names[-1], *names[:-1]]})
    found = compared(dense.out, other)
    assert found.verdict == "identical"
    assert "100.00% of the matched boxes have the same object class" in found.text()


def test_equal_numbers_of_other_names_are_not_identical(dense: Pictures, tmp_path: Path) -> None:
    other = rewritten(dense.out, tmp_path / "b")
    names = RegionStore(other).object_names
    write_json(other / INDEX, json.loads((other / INDEX).read_text()) | {"object_names": [names[-1], *names[:-1]]})
    found = compared(dense.out, other)
    assert found.verdict == "equivalent"
    assert "0.00% of the matched boxes have the same object class" in found.text()


def test_json_lists_what_differs(dense: Pictures, tmp_path: Path) -> None:
    comparison = compared(dense.out, rewritten(dense.out, tmp_path / "b", only(3, noisy(0.5))))
    write_json(tmp_path / "comparison.json", comparison.as_json())
    report = json.loads((tmp_path / "comparison.json").read_text())
    assert report["verdict"] == "different" and report["reasons"] and report["tolerances"]["cosine"] == 0.999
    assert [picture["image_id"] for picture in report["pictures"]] == ["id-003.png"]
    assert report["summary"]["centred_least_image"] == pytest.approx(report["pictures"][0]["centred"])


def test_a_broken_store_is_an_input_error(dense: Pictures, tmp_path: Path) -> None:
    b = rewritten(dense.out, tmp_path / "b")
    (b / "000000.h5").write_bytes((b / "000000.h5").read_bytes()[:5000])
    for broken in (b, tmp_path / "nowhere"):
        with pytest.raises(InputError):
            compared(dense.out, broken)
    write_json(b / INDEX, {"schema": 1})
    with pytest.raises(InputError, match="selfalign verify"):
        compared(dense.out, b)


def test_tolerances_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="--cosine"):
        Tolerances(cosine=1.5)


# -- matching ----------------------------------------------------------------------------------------------------------


def test_match_equals_a_plain_greedy_loop() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        corners = random.uniform(0, 60, (2, 12, 2))
        a, b = (np.concatenate([c, c + random.uniform(10, 60, c.shape)], 1).astype(np.float32) for c in corners)
        b = b[: random.integers(1, 12)]
        rows_a, rows_b = match(a, b, 0.3)
        assert dict(zip(rows_a.tolist(), rows_b.tolist(), strict=True)) == greedy(a, b, 0.3)


def greedy(a: np.ndarray, b: np.ndarray, least: float) -> dict[int, int]:
    """The pairs of falling IoU, one after another."""
    pairs = []
    for i, (x1, y1, x2, y2) in enumerate(a.astype(float)):
        for j, (u1, v1, u2, v2) in enumerate(b.astype(float)):
            shared = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
            pairs.append((shared / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared), i, j))
    found: dict[int, int] = {}
    for overlap, i, j in sorted(pairs, reverse=True):
        if overlap >= least and i not in found and j not in found.values():
            found[i] = j
    return found


def test_match_pairs_equal_boxes_by_row_even_without_area() -> None:
    boxes = np.array([[1, 1, 1, 1]] * 3 + [[0, 0, 2, 2]] * 2, np.float32)
    rows_a, rows_b = match(boxes, boxes, 0.95)
    assert rows_a.tolist() == rows_b.tolist() == [0, 1, 2, 3, 4]


def test_match_of_nothing_and_of_nan_is_empty() -> None:
    box = np.array([[0, 0, 2, 2]], np.float32)
    for other in (np.empty((0, 4), np.float32), np.full((1, 4), np.nan, np.float32), box + 1.5):
        assert [len(rows) for rows in match(box, other, 0.5)] == [0, 0]
