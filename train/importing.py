"""`selfalign import-model`: an authors' checkpoint becomes a trained run, to be evaluated, searched and looked into.

Tensors alone are read of it (`manifests.unpickle`). Words have the rows of the vocabulary that comes with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extract.text.vocabulary import SPECIAL, UNKNOWN
from extract.vision.rcnn.checkpoint import read_content
from manifests.errors import InputError
from manifests.files import sha256, whole_folder
from manifests.jsonl import parse_json, read_utf8
from manifests.locks import one_writer
from manifests.opening import open_file
from manifests.unpickle import Record, Refused, Unpickler
from train.checkpoint import data_recipe, save_model
from train.curves import write_curves
from train.data import RetrievalData
from train.losses import LOSSES
from train.losses.loss import Side
from train.model import RetrievalModel, build_model
from train.published import Matched, losses_of, matched
from train.settings import RunSettings
from train.words import WordEmbedding

# Whose checkpoints: the base of the run that takes them in, and whether SelfAlign's context is beside it.
KINDS = {
    "vsrn": ("vsrn", False),
    "camera": ("camera", False),
    "vse-infinity": ("vse_infinity", False),
    "aladin": ("transformer", False),
    "selfalign-vsrn": ("vsrn", True),
    "selfalign-camera": ("camera", True),
}
_SHOWN = 8
_SIDES: tuple[Side | None, ...] = ("images", "captions", None)
_PREFIXES = {"img_enc.": "images", "txt_enc.": "captions", "caption_model.": None}


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of it: the validation's recalls, and what is to be said."""

    recalls: Mapping[str, float]
    notes: tuple[str, ...]


@one_writer("import of a model")
def run(
    *,
    kind: str,
    file: Path,
    name: str,
    settings: RunSettings,
    manifest: Path,
    regions: Path,
    tokens: Path,
    validate: Callable[[RetrievalModel, RetrievalData], Mapping[str, float]],
    out: Path,
    curves: Path,
    text_features: Path | None = None,
    vocabulary: Path | None = None,
    device: str = "cpu",
) -> Imported:
    """Write the checkpoint `file` of the authors' as the model `out` of the run `name`, and its validation to `curves`.

    Parameters
    ----------
    kind : one of `KINDS`; settings : of the run, whose base must be that kind's and have the file's sizes.
    manifest, regions, tokens, text_features : the data set's manifest and stores, as in training.
    vocabulary : the file's own, JSON or pickle, for learned words.

    Raises
    ------
    InputError : a file that holds no such model; parameters that are missing, unexpected or of another shape, listed.
    """
    _require_kind(kind, name, settings)
    data = RetrievalData(manifest, regions, tokens, "val", pieces=settings.text.pieces, text_features=text_features)
    settings = _without_training_parts(settings)
    dims = (data.region_store.dim, data.vocabulary_size)
    model = build_model(settings, *dims, text_dim=data.text_dim, boundary_ids=data.boundary_ids)
    parts, notes = read_parts(file), []
    if isinstance(model.words, WordEmbedding):
        words, captions = read_words(vocabulary, file), parts.get("captions", {})
        theirs = next(begin for begin, ours in model.base.published().captions.items() if ours == "words.embedding.")
        if (rows := captions.get(f"{theirs}weight")) is not None:
            captions[f"{theirs}weight"], note = rows_of(rows, words, data.token_store.vocabulary, vocabulary)
            notes.append(note)
    found = matched(model, parts)
    _require_all(found, losses_of({side: list(own) for side, own in parts.items()}, model), file, name)
    if found.unexpected:
        notes.append(f"not read, since nothing here needs it: {_listed(found.unexpected)}")
    model.load_state_dict({ours: tensor.float() for ours, tensor in found.weights.items()}, strict=False)
    model.to(device).eval()
    recalls = dict(validate(model, data))
    record = {
        "settings": settings.model_dump(exclude_none=True),
        "feature_dim": data.region_store.dim,
        "vocabulary_size": data.vocabulary_size,
        "recipe": data_recipe(data),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "imported": {"kind": kind, "file": Path(file).name, "sha256": sha256(file)},
        "best_epoch": 0,
        "val_rsum": recalls["rsum"],
        "seconds": 0.0,
    }
    with whole_folder(out) as folder:
        save_model(folder, model, record)
    write_curves(curves, [{"epoch": 0, "seconds": 0.0, **{f"val_{key}": value for key, value in recalls.items()}}])
    return Imported(recalls, tuple(notes))


def read_parts(file: Path) -> dict[Side | None, dict[str, Tensor]]:
    """The tensors of each part of a checkpoint: of the images' encoder, the captions', the caption decoder (None).

    A model is a list of their states, or one dictionary whose names may begin with the part's.
    """
    content = read_content(Path(file))
    state = content.get("model", content.get("state_dict", content))
    if isinstance(state, list | tuple):
        parts = dict(zip(_SIDES, state, strict=False))
    elif isinstance(state, dict):
        parts = {}
        for name, value in state.items():
            name = str(name).removeprefix("module.")
            begin = next((begin for begin in _PREFIXES if name.startswith(begin)), None)
            parts.setdefault(_PREFIXES[begin] if begin else "images", {})[name.removeprefix(begin or "")] = value
    else:
        parts = {}
    tensors = {
        side: {str(name).removeprefix("module."): torch.as_tensor(x) for name, x in part.items() if _is_numbers(x)}
        for side, part in parts.items()
        if isinstance(part, dict)
    }
    if not any(tensors.values()):
        raise InputError("it holds no parameters", where=file, fix="give a checkpoint that the authors' code saved")
    return tensors


def read_words(vocabulary: Path | None, file: Path) -> dict[str, int]:
    """Which row each word has, of a vocabulary as VSRN's code writes it: JSON, or a pickled `Vocabulary`."""
    if vocabulary is None:
        raise InputError(
            "its words have rows of a vocabulary of their own",
            where=file,
            fix="give the vocabulary that comes with it: --vocabulary FILE (.json or .pkl)",
        )
    fix = "give the vocabulary that comes with the checkpoint"
    if Path(vocabulary).suffix == ".json":
        content = parse_json(read_utf8(vocabulary), path=vocabulary, fix=fix)
    else:
        try:
            with open_file(vocabulary) as opened:
                content = _Vocabulary(opened, records=True, calls=dict.fromkeys(_CLASSES, lambda *_: _State())).load()
        except Refused as error:
            raise InputError(f"no vocabulary that can be read ({error})", where=vocabulary, fix=fix) from None
    words = content.get("word2idx", content) if isinstance(content, dict) else None
    if not isinstance(words, dict) or not all(type(row) is int and row >= 0 for row in words.values()):
        raise InputError("it doesn't say which row each word has (word2idx)", where=vocabulary, fix=fix)
    return {str(word): row for word, row in words.items()}


def rows_of(rows: Tensor, words: Mapping[str, int], own: list[str], where: object) -> tuple[Tensor, str]:
    """Their rows ``[V, W]`` in the order of our vocabulary; words that they don't have get the row of ``<unk>``."""
    lacking = [special for special in SPECIAL if special not in words]
    if lacking or max(words.values()) >= len(rows):
        message = (
            f"it has no {', '.join(lacking)}" if lacking else f"it has more words than the checkpoint, {len(rows)}"
        )
        raise InputError(message, where=where, fix="give the vocabulary that comes with the checkpoint")
    unknown = words[SPECIAL[UNKNOWN]]
    found = rows[[words.get(word, unknown) for word in own]]
    new = sum(word not in words for word in own)
    unused = len(words.keys() - set(own))
    return found, f"{new} of the data set's {len(own)} words aren't in it, {unused} of its {len(words)} aren't used"


class _State(dict):
    """A pickled object's attributes."""


class _Vocabulary(Unpickler):
    def _build(self, _: None) -> None:
        target = self._stack[-2]
        if isinstance(target, _State):
            (state,) = self._pop(1)
            target.update(state if isinstance(state, dict) else {})
        else:
            super()._build(None)


_CLASSES = [f"{module}.Vocabulary" for module in ("vocab", "vocabulary", "lib.vocab", "__main__")]


def _is_numbers(value: Any) -> bool:
    return not isinstance(value, Record) and (isinstance(value, Tensor) or type(value).__name__ == "ndarray")


def _require_kind(kind: str, name: str, settings: RunSettings) -> None:
    base, aligned = KINDS[kind]
    if settings.base.name != base:
        raise InputError(
            f"its base is {settings.base.name}, and checkpoints of {kind} are of {base}",
            where=f"run {name}",
            fix=f"name a run with `base: {{name: {base}, ...}}` (presets/ has the published ones)",
        )
    if aligned != ("cra" in settings.losses):
        message = "has no losses.cra, whose context is a part of the embedding" if aligned else "has losses.cra"
        raise InputError(
            f"it {message}", where=f"run {name}", fix="add `cra: {}`" if aligned else f"use selfalign-{kind}"
        )


def _without_training_parts(settings: RunSettings) -> RunSettings:
    """The run without losses that have parameters for training alone: a checkpoint to search with lacks them."""
    kept = {
        name: options
        for name, options in settings.losses.items()
        if LOSSES.find(name).added_dims(options, 1) or not LOSSES.find(name).training_only
    }
    return settings.model_copy(update={"losses": kept})


def _require_all(found: Matched, belonging: list[str], file: Path, name: str) -> None:
    """Raise `InputError` that lists what a model lacks, and what it has no place for that has a meaning."""
    kinds = {"missing": found.missing, "of another shape": found.mismatched}
    if found.absent or belonging or any(kinds.values()):
        kinds["unexpected"] = found.absent + found.unexpected
        message = "; ".join(f"{what}: {_listed(names)}" for what, names in kinds.items() if names)
        fix = f"give the run losses {', '.join(belonging)}" if belonging else "set base to the sizes of the checkpoint"
        raise InputError(f"it isn't the model of run {name}: {message}", where=file, fix=fix)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
