"""What runs, ensembles and studies leave behind as JSON and CSV: the types of all that the report shows of it."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, create_model, model_validator

from eval.recall import DIRECTIONS, RECALLS
from manifests.errors import InputError
from manifests.jsonl import read_utf8
from manifests.typed import Count, Written, read_checked

T = TypeVar("T", bound=Written)
Figure = Annotated[float, Field(ge=-1e12, le=1e12)]
_MOST = 1e12

_Recalls = create_model("_Recalls", __base__=Written, **dict.fromkeys(["rsum", *RECALLS], (Figure, ...)))
_Ranks = {f"{way}_{what}_rank": (Figure, 0) for way in DIRECTIONS for what in ("median", "mean")}


def _all_or_none(*names: str) -> Any:
    """A check of a `Written`: these keys stand together or not at all, null being not at all."""

    def check(self: Written) -> Written:
        lacking = [name for name in names if getattr(self, name) is None or name not in self.model_fields_set]
        if 0 < len(lacking) < len(names):
            raise ValueError(f"{lacking[0]} is missing beside {', '.join(sorted(set(names) - set(lacking)))}")
        return self

    return model_validator(mode="after")(check)


class _Share(Written):
    accuracy: Figure
    chance: Figure
    words: Count


class _Shares(_Share):
    kinds: dict[str, _Share]


class _Mode(Written):
    rsum: Figure


_Told = dict[str, Figure | str]  # a metric's figures, or why there are none


class Metrics(create_model("_Figures", __base__=_Recalls, **_Ranks)):
    """`figures.json` of a run or of an ensemble."""

    split: Literal["train", "val", "test"]
    images: Count
    captions: Count
    chance: _Recalls
    interval: dict[str, tuple[Figure, Figure]] = {}
    correspondence: _Shares = None
    modes: dict[str, _Mode] = {}
    ndcg: dict[str, _Told] = {}
    unimodal: _Told = {}
    eccv: _Told = {}
    others: dict[str, _Told] = {}


class EnsembleMetrics(Metrics):
    """`figures.json` of an ensemble."""

    runs: list[str]


class _Made(Written):
    host: str = ""
    processor: str = ""
    cores: Count | None = None


class Record(Written):
    """`model/run.json`, as far as the report shows it."""

    made: _Made = None

    parameters: Count
    best_epoch: Count | None
    val_rsum: Figure = None


class _Used(Written):
    in_use: Count
    entropy: Figure
    effective: Figure


class _Entry(Written):
    concept: Count
    words: Count
    regions: Count
    agreement: Figure = 0
    agreement_chance: Figure = 0
    most_words: list[tuple[str, Count]]
    most_labels: list[tuple[str, Count]]
    _coded = _all_or_none("agreement", "agreement_chance")


class _Concepts(Written):
    size: Count
    words: _Used
    regions: _Used
    agreement: Figure
    agreement_chance: Figure
    entries: list[_Entry]


class _Speech(Written):
    words: Count
    cosine: Figure = 0
    accuracy: Figure = 0
    chance: Figure = 0
    agreement: Figure = 0
    agreement_chance: Figure = 0
    _own = _all_or_none("accuracy", "chance")
    _coded = _all_or_none("agreement", "agreement_chance")


class Correspondence(Written):
    """`correspondence.json`."""

    parts_of_speech: dict[str, _Speech]
    concepts: _Concepts = None


class _Timed(Written):
    query_ms: Annotated[float, Field(gt=0, le=1e12)]


class _Encode(Written):
    image: Figure
    caption: Figure
    caption_alone: Figure


_Candidates = Annotated[str, Field(pattern=r"^[0-9]{1,15}$")]


class Cost(Written):
    """`cost.json`."""

    dims: Count
    views: Count
    regions: Count
    words: Count
    device: str
    threads: Count
    made: _Made = None
    encode_ms: _Encode
    search_ms: dict[_Candidates, Figure]
    cross_attention_ms: dict[_Candidates, Figure]
    cross_attention_reckoned: list[str]
    times: dict[_Candidates, Figure]
    modes: dict[str, _Timed] = {}


class _Word(Written):
    word: str
    pos: str
    cosine: Figure
    labels: list[str]
    concept: int = 0
    region_concept: int = 0
    right: bool = False
    fitting: bool = False
    _coded = _all_or_none("concept", "region_concept")
    _known = _all_or_none("right", "fitting")


class Pair(Written):
    """A line of `evaluation/correspondence.jsonl`."""

    words: list[_Word]


class StudyRow(Written):
    """A row of a study's `table.csv`."""

    row: str
    seeds: Annotated[float, Field(ge=1)]
    rsum: Figure
    rsum_sd: Figure | None
    low: Figure
    high: Figure
    i2t_r1: Figure
    t2i_r1: Figure
    against: str
    gain: Figure | None
    gain_sd: Figure | None
    teacher_rsum: Figure | None
    reranked_rsum: Figure | None
    fitting: Figure | None
    fitting_chance: Figure | None
    agreement: Figure | None
    agreement_chance: Figure | None
    in_use: Figure | None
    chosen: str
    _known = _all_or_none("fitting", "fitting_chance")
    _coded = _all_or_none("agreement", "agreement_chance")
    _ways = _all_or_none("teacher_rsum", "reranked_rsum")


def read_json(path: Path, kind: type[T], *, fix: str) -> dict[str, Any]:
    """What a JSON file holds. Raises InputError, with `fix`, unless it is as `kind` says."""
    return read_checked(path, kind, fix=fix)[1]


def read_table(
    path: Path, needed: Sequence[str], texts: Sequence[str] = (), *, fix: str
) -> list[dict[str, float | str | None]]:
    """The rows of a CSV file with a header: finite numbers, or None where a cell is empty, and `texts` as they are.

    Raises InputError, with `fix`, for a column of `needed` that is missing or empty, and for what is no table of
    numbers.
    """
    try:
        lines = [line for line in csv.reader(io.StringIO(read_utf8(path, fix=fix), newline=""), strict=True) if line]
        columns = lines[0] if lines else []
        rows = []
        for cells in lines[1:]:
            if len(cells) != len(columns):
                raise ValueError(f"a row has {len(cells)} cells and the header {len(columns)}")
            row = dict(zip(columns, cells, strict=True))
            if lacking := [name for name in needed if not row.get(name)]:
                raise ValueError(f"{lacking[0]} is missing")
            rows.append({key: value if key in texts else _number(value) for key, value in row.items()})
    except (ValueError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"no table of numbers ({error})", where=path, fix=fix) from error
    if len(set(columns)) != len(columns) or not set(needed) <= set(columns):
        raise InputError(f"its columns are {', '.join(columns)}", where=path, fix=fix)
    return rows


def _number(text: str) -> float | None:
    value = float(text) if text else None
    if value is not None and not abs(value) <= _MOST:
        raise ValueError(f"a cell is {text:.20}")
    return value
