"""`selfalign compare`: how much two region stores differ, picture by picture.

Near-ties in objectness swap rows, so boxes are matched first. The pair with the largest IoU comes first, then the
largest of the rest, down to a least IoU. Features are compared on matched rows. Raw cosines hide differences, because
all features share a large mean. So the verdict uses the centred cosine: the mean feature of store A is subtracted from
both (docs/stores.md). One picture is open at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from extract.stores.fields import FIELDS, LABELS, Regions
from extract.stores.recipe import first_difference
from extract.stores.regions import RegionStore
from manifests.errors import InputError
from manifests.progress import progress

EDGES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)  # of the histogram's bins: narrow near 1
_WORST = 5  # pictures shown
# Every float16 as float32, by its bits: NumPy's own conversion takes four times as long.
_FLOAT32 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
_BAR = 40  # columns of the histogram's longest bar


@dataclass(frozen=True, slots=True)
class Tolerances:
    """The limits within which two stores are equivalent.

    iou : the least of two boxes that match.
    matched : least share of all boxes that match.
    cosine : least centred cosine of a picture, the mean of its matched rows.
    max_abs : largest difference of any number of a feature, None for any.
    """

    iou: float = 0.95
    matched: float = 0.99
    cosine: float = 0.999
    max_abs: float | None = None

    def __post_init__(self) -> None:
        for name in ("iou", "matched", "cosine"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{getattr(self, name)} isn't in (0, 1]", where=f"--{name}", fix="name a share")


@dataclass(frozen=True, slots=True)
class Picture:
    """How one image differs in the two stores.

    boxes : the larger of its two numbers of boxes, of which `matched` match.
    finite : no matched feature is NaN or infinite (not looked at in identical images).
    cosine, centred : mean and least over the matched rows, in -1 to 1. max_abs : largest difference of any number of a
        matched feature. All five are None where no rows can be compared.
    same_objects, same_attributes : how many matched rows have the same class; None where a store has none.
    """

    image_id: str
    identical: bool
    boxes: int
    matched: int
    same_size: bool
    finite: bool
    cosine: float | None = None
    cosine_least: float | None = None
    centred: float | None = None
    centred_least: float | None = None
    max_abs: float | None = None
    same_objects: int | None = None
    same_attributes: int | None = None


@dataclass
class Comparison:
    """The result of `run`: the stores, the images in only one of them, and every image in both, in A's order.

    dims : length of a feature in A and in B. recipe_difference : first key at which recipes differ, A's value, B's.
    """

    a: str
    b: str
    tolerances: Tolerances
    dims: tuple[int, int]
    recipe_difference: tuple[str, Any, Any] | None
    only_in_a: list[str]
    only_in_b: list[str]
    same_order: bool
    pictures: list[Picture]

    @property
    def verdict(self) -> str:
        """ "identical" (all arrays equal, in one order), "equivalent" (within the tolerances) or "different"."""
        if self.reasons:
            return "different"
        return "identical" if self.same_order and all(p.identical for p in self.pictures) else "equivalent"

    @cached_property
    def matched_share(self) -> float:
        """Matched boxes of all boxes, counting in each image the store that has more."""
        boxes = sum(p.boxes for p in self.pictures)
        return sum(p.matched for p in self.pictures) / boxes if boxes else 1.0

    @cached_property
    def reasons(self) -> list[str]:
        """Everything that makes the stores different, a sentence each."""
        asked, reasons = self.tolerances, []
        for name, ids in (("A", self.only_in_a), ("B", self.only_in_b)):
            if ids:
                reasons.append(f"{len(ids):,} images are only in {name}, the first {ids[0]}")
        if self.dims[0] != self.dims[1]:
            reasons.append(f"a feature has {self.dims[0]} numbers in A, {self.dims[1]} in B")
        if self.matched_share < asked.matched:
            reasons.append(f"{self.matched_share:.2%} of the boxes match, asked for are {asked.matched:.2%}")
        for what, found in (
            ("have no box in common", [p for p in self.pictures if p.boxes and not p.matched]),
            ("have another size", [p for p in self.pictures if not p.same_size]),
            ("have NaN or infinite features", [p for p in self.pictures if not p.finite and not p.identical]),
        ):
            if found:
                reasons.append(f"{len(found):,} images {what}, the first {found[0].image_id}")
        below = [p for p in self.pictures if p.centred is not None and p.centred < asked.cosine]
        if below:
            least = min(below, key=lambda p: p.centred)
            reasons.append(
                f"{len(below):,} images have a centred cosine below {asked.cosine}, "
                f"the least {least.centred:.6f} ({least.image_id})"
            )
        largest = max((p for p in self.pictures if p.max_abs is not None), key=lambda p: p.max_abs, default=None)
        if asked.max_abs is not None and largest and largest.max_abs > asked.max_abs:
            reasons.append(f"a feature differs by {largest.max_abs:.4g} ({largest.image_id}), above {asked.max_abs:g}")
        return reasons

    def _values(self, name: str) -> np.ndarray:
        """The numbers `name` of all pictures that have one."""
        return np.array([value for p in self.pictures if (value := getattr(p, name)) is not None], float)

    def histogram(self) -> list[int]:
        """Images by centred cosine: below `EDGES[0]`, then from each edge to the next, and from the last one on."""
        bins = np.searchsorted(EDGES, self._values("centred"), side="right")
        return np.bincount(bins, minlength=len(EDGES) + 1).tolist()

    def summary(self) -> dict[str, Any]:
        """The numbers over all images: they stand above the printed histogram, and in the head of the JSON file."""
        numbers: dict[str, Any] = {
            "images": len(self.pictures),
            "identical_images": sum(p.identical for p in self.pictures),
            "boxes": sum(p.boxes for p in self.pictures),
            "matched_share": self.matched_share,
            "matched_share_least": min((p.matched / p.boxes for p in self.pictures if p.boxes), default=1.0),
        }
        for name in ("cosine", "centred"):
            values = self._values(name)
            numbers[name] = values.mean().item() if len(values) else None
            numbers[f"{name}_least_image"] = values.min().item() if len(values) else None
            numbers[f"{name}_least_row"] = self._values(f"{name}_least").min().item() if len(values) else None
        numbers["max_abs"] = self._values("max_abs").max().item() if len(self._values("max_abs")) else None
        for name in ("same_objects", "same_attributes"):
            matched = sum(p.matched for p in self.pictures if getattr(p, name) is not None)
            numbers[name] = self._values(name).sum().item() / matched if matched else None
        return numbers

    def as_json(self) -> dict[str, Any]:
        """Verdict, summary, histogram and every image that isn't identical."""
        key = self.recipe_difference and dict(zip(("key", "a", "b"), self.recipe_difference, strict=True))
        return {
            "a": self.a,
            "b": self.b,
            "tolerances": asdict(self.tolerances),
            "verdict": self.verdict,
            "reasons": self.reasons,
            "recipe_difference": key,
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "same_order": self.same_order,
            "summary": self.summary(),
            "histogram": {"edges": list(EDGES), "images": self.histogram()},
            "pictures": [asdict(p) for p in self.pictures if not p.identical],
        }

    def text(self) -> str:
        """The comparison as text for a terminal."""
        n = self.summary()
        order = "" if self.same_order else ", in another order"
        lines = [f"A        {self.a}", f"B        {self.b}"]
        if self.recipe_difference:
            key, ours, theirs = self.recipe_difference
            lines.append(f"recipe   differs, first at {key}: {ours!r} in A, {theirs!r} in B")
        else:
            lines.append("recipe   the same")
        lines.append(
            f"images   {n['images']:,} in both{order}, {n['identical_images']:,} of them identical; "
            f"{len(self.only_in_a):,} only in A, {len(self.only_in_b):,} only in B"
        )
        lines.append(
            f"boxes    {n['matched_share']:.2%} of {n['boxes']:,} match at IoU >= {self.tolerances.iou:g}; "
            f"least in an image {n['matched_share_least']:.2%}"
        )
        for name in ("cosine", "centred"):
            if n[name] is not None:
                lines.append(
                    f"{name:8} mean {n[name]:.6f}, least of an image {n[f'{name}_least_image']:.6f}, "
                    f"of a region {n[f'{name}_least_row']:.6f}"
                )
        if n["max_abs"] is not None:
            lines.append(f"max abs  {n['max_abs']:.4g}")
        for name, what in (("same_objects", "object class"), ("same_attributes", "attribute")):
            if n[name] is not None:
                lines.append(f"labels   {n[name]:.2%} of the matched boxes have the same {what}")
        counts = self.histogram()
        lines += ["", f"{sum(counts):,} images with matched boxes by centred cosine", *_bars(counts)]
        differing = [p for p in self.pictures if not p.identical and p.centred is not None]
        differing.sort(key=lambda p: (round(p.centred, 6), -p.max_abs))
        if differing:
            lines += ["", "furthest apart"]
            for p in differing[:_WORST]:
                numbers = f"centred {p.centred:.6f}, max abs {p.max_abs:.4g}"
                lines.append(f"  {p.image_id}: {numbers}, {p.matched} of {p.boxes} boxes match")
        asked = self.tolerances
        limit = "" if asked.max_abs is None else f", max abs <= {asked.max_abs:g}"
        tolerances = f"matched >= {asked.matched:g}, centred cosine of every image >= {asked.cosine:g}{limit}"
        why = "every array is equal" if self.verdict == "identical" else f"asked for: {tolerances}"
        return "\n".join([*lines, "", f"{self.verdict} ({why})", *(f"  {reason}" for reason in self.reasons)])


def run(*, a: Path, b: Path, tolerances: Tolerances) -> Comparison:
    """Compare two region stores image by image. Raises `InputError` where one can't be read."""
    ours, theirs = _Store(a), _Store(b)
    theirs.number_as(ours)
    same_dim = ours.store.dim == theirs.store.dim
    shared = [image_id for image_id in ours.ids if image_id in theirs.row]
    pictures = []
    for image_id in progress(shared, what="compare", unit="images"):
        x, y = ours.regions(image_id), theirs.regions(image_id)
        if identical(x, y):
            pictures.append(_same(image_id, x))
        else:
            pictures.append(compare_picture(image_id, x, y, ours.mean_feature if same_dim else None, tolerances.iou))
    return Comparison(
        a=str(a),
        b=str(b),
        tolerances=tolerances,
        dims=(ours.store.dim, theirs.store.dim),
        recipe_difference=first_difference(ours.store.recipe, theirs.store.recipe),
        only_in_a=[image_id for image_id in ours.ids if image_id not in theirs.row],
        only_in_b=[image_id for image_id in theirs.ids if image_id not in ours.row],
        same_order=shared == [image_id for image_id in theirs.ids if image_id in ours.row],
        pictures=pictures,
    )


def identical(a: Regions, b: Regions) -> bool:
    """Whether all arrays are equal byte for byte."""
    if a.image_size != b.image_size:
        return False
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        if (x is None) != (y is None):
            return False
        if x is not None and (x.dtype != y.dtype or x.shape != y.shape or x.tobytes() != y.tobytes()):
            return False
    return True


def _same(image_id: str, regions: Regions) -> Picture:
    """An image with identical regions in both stores."""
    count = len(regions)
    one, zero = (1.0, 0.0) if count else (None, None)
    return Picture(
        image_id=image_id,
        identical=True,
        boxes=count,
        matched=count,
        same_size=True,
        finite=True,
        cosine=one,
        cosine_least=one,
        centred=one,
        centred_least=one,
        max_abs=zero,
        same_objects=None if regions.objects_id is None else count,
        same_attributes=None if regions.attrs_id is None else count,
    )


def compare_picture(image_id: str, a: Regions, b: Regions, centre: np.ndarray | None, iou: float) -> Picture:
    """Compare one image's regions, which are not identical in the two stores.

    Parameters
    ----------
    centre : the mean feature float32 ``[D]``, or None where the stores' features differ in length.
    iou : from here on two boxes match.
    """
    rows_a, rows_b = match(a.boxes, b.boxes, iou)
    labels = {
        f"same_{what}": int((x[rows_a] == y[rows_b]).sum())
        for what, x, y in (("objects", a.objects_id, b.objects_id), ("attributes", a.attrs_id, b.attrs_id))
        if x is not None and y is not None
    }
    facts = {
        "image_id": image_id,
        "identical": False,
        "boxes": max(len(a), len(b)),
        "matched": len(rows_a),
        "same_size": a.image_size == b.image_size,
        **labels,
    }
    if centre is None or not len(rows_a):
        return Picture(**facts, finite=True)
    x, y = _float32(a.features)[rows_a], _float32(b.features)[rows_b]
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Picture(**facts, finite=False)
    raw, centred = _cosine(x, y), _cosine(x - centre, y - centre)
    return Picture(
        **facts,
        finite=True,
        cosine=raw.mean().item(),
        cosine_least=raw.min().item(),
        centred=centred.mean().item(),
        centred_least=centred.min().item(),
        max_abs=np.abs(x - y).max().item(),
    )


def _float32(features: np.ndarray) -> np.ndarray:
    if features.dtype == np.float32:
        return features
    return _FLOAT32.take(features.view(np.uint16))


def match(a: np.ndarray, b: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Pair boxes ``[A, 4]`` and ``[B, 4]`` greedily by falling IoU, each at most once, down to the IoU `least`.

    Each round takes all pairs that are each other's best, which gives the greedy pairs; equal IoUs go by row.
    Equal boxes count as IoU 1 even if they have no area. Returns the rows of `a`, rising, and those of `b`.
    """
    if not len(a) or not len(b):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    overlap = _iou(a, b)
    overlap[overlap < least] = -1
    partner = np.full(len(a), -1)
    while overlap.max() >= 0:
        best = overlap.argmax(1)
        mutual = np.flatnonzero((overlap.argmax(0)[best] == np.arange(len(a))) & (overlap.max(1) >= 0))
        partner[mutual] = best[mutual]
        overlap[mutual] = -1
        overlap[:, best[mutual]] = -1
    rows = np.flatnonzero(partner >= 0)
    return rows, partner[rows]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Float64 ``[A, B]`` of boxes (x1, y1, x2, y2); 0 where a box isn't finite."""
    first, second = a[:, None].astype(float), b[None].astype(float)
    with np.errstate(all="ignore"):
        sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
        shared = np.maximum(sides, 0).prod(-1)
        area_a, area_b = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (first, second))
        overlap = np.nan_to_num(shared / (area_a + area_b - shared), nan=0.0, posinf=0.0, neginf=0.0)
    overlap[(a[:, None] == b[None]).all(-1)] = 1
    return overlap


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosine of each row of two ``[M, D]``; equal rows give 1 and a zero row beside another one 0."""
    product = np.einsum("md,md->m", x, y)
    norms = np.sqrt(np.einsum("md,md->m", x, x) * np.einsum("md,md->m", y, y))
    cosine = np.clip(np.divide(product, norms, out=np.zeros_like(product), where=norms > 0), -1, 1)
    cosine[(x == y).all(1)] = 1
    return cosine


def _bars(counts: Sequence[int]) -> list[str]:
    """A line a bin of the histogram, the highest cosines first."""
    names = [f"below {EDGES[0]:g}", *(f"from {edge:g}" for edge in EDGES)]
    longest = max(max(counts), 1)
    return [
        f"  {name:>12} |{'#' * -(-count * _BAR // longest)} {count:,}"
        for name, count in reversed(list(zip(names, counts, strict=True)))
    ]


class _Store:
    """A region store by image id, whose damage is an `InputError`."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        with self._readable():
            self.store = RegionStore(folder)
            self.ids = self.store.ids
        self.row = {image_id: row for row, image_id in enumerate(self.ids)}
        self._numbers: dict[str, np.ndarray] = {}

    def regions(self, image_id: str) -> Regions:
        """One image's regions, checked to fit each other."""
        with self._readable():
            found = self.store.read(self.row[image_id])
            features, boxes = found.features, found.boxes
            shape = (len(boxes), self.store.dim)
            if boxes.shape[1:] != (4,) or features.shape != shape or features.dtype not in ("<f2", "<f4"):
                raise ValueError(f"features {features.dtype} {features.shape} and boxes {boxes.shape} of {image_id}")
            return self._renumbered(found)

    def number_as(self, other: "_Store") -> None:
        """From now on give the other's numbers of the classes, where both stores name them; -1 is none of its names."""
        for label, own in LABELS.items():
            ours, theirs = ((store.index[own.names] if own.names else None) for store in (self.store, other.store))
            if ours and theirs and ours != theirs:
                places = {name: place for place, name in enumerate(theirs)}
                self._numbers[label] = np.array([*(places.get(name, -1) for name in ours), -1], np.int32)

    def _renumbered(self, regions: Regions) -> Regions:
        numbered = {}
        for label, numbers in self._numbers.items():
            if (known := getattr(regions, label)) is not None:
                # A number that has no name is that of the last place.
                numbered[label] = numbers[np.where((known >= 0) & (known < len(numbers)), known, -1)]
        return replace(regions, **numbered) if numbered else regions

    @cached_property
    def mean_feature(self) -> np.ndarray:
        """Mean over all regions of the store, float32 ``[D]``; pictures with NaN or infinite features are left out."""
        total, count = np.zeros(self.store.dim), 0
        for image_id in progress(self.ids, what="mean feature of A", unit="images"):
            features = _float32(self.regions(image_id).features)
            sums = features.sum(0)
            if np.isfinite(sums).all():
                total += sums
                count += len(features)
        return (total / max(count, 1)).astype(np.float32)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # h5py raises whatever a damaged file leads it to
            raise InputError(
                f"not a whole region store ({error})", where=self.folder, fix=f"see `selfalign verify {self.folder}`"
            ) from error
