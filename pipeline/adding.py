"""`selfalign add`: a data set's entry of `params.yaml`, and a run's that suits its size, proposed by what is there.

The file's other bytes stay as they are. It is replaced only once the new text is read and checked as a whole.
"""

import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from spacy.util import get_installed_models

from extract.packages import local_path
from extract.text.languages import guess_language, stop_words
from extract.text.scripts import NAME as CHARACTERS
from extract.text.scripts import require_cut
from extract.text.words import load_language
from manifests.errors import InputError
from manifests.files import write_text
from manifests.locks import sole_writer
from manifests.names import require_name
from manifests.readers import READERS, kind_of
from manifests.schema import SPLITS
from pipeline import editing, places, strict_yaml
from pipeline.options import keys_as_options
from pipeline.params import FILE, Params, parse_params, read_text
from pipeline.previews import (
    Sample,
    SourcePreview,
    preview_features,
    preview_pictures,
    sample_features,
    sample_pictures,
)

PRESET = Path(__file__).parents[1] / "presets" / "photographs.yaml"
"""Entries for photographs that need nothing but PyPI: detector, sentence encoder for English, and a run."""
_SAMPLE = 2000  # captions that tell the language
_FEW = 2000  # captions below which a run has small batches
_RATE = 250  # captions a second in training, on two cores


def run(
    *,
    name: str,
    images: Path | None,
    captions: Path | None,
    features: tuple[str, Path] | None,
    boxes: str | None,
    sizes: str | None,
    language: str | None,
    skip: bool,
    device: str,
    staging: Path,
) -> str:
    """Write the entries of the data set `name` and its run; returns what was understood and what to run next.

    Parameters
    ----------
    images, captions : pictures; without `captions` a file of them in the folder is taken, or there are none.
    features : format and path of region features instead, `images` for reports then; `boxes`, `sizes` are scan's.
    language : of the captions, as `tokens.language` has it; found out if not given.
    skip : whether rows, captions and pictures that can't be used are left out.
    device : torch device on which the detector is tried.
    staging : folder for the list of what can't be used, where that is more than a message shows.

    Raises
    ------
    InputError : a name that is taken or none, and all that is wrong with what is there; `params.yaml` stays as it was.
    """
    listing = staging / f"{name}-refused.jsonl"
    with sole_writer(FILE, f"change of {FILE}", wait=False):
        text = read_text()
        params = parse_params(text)
        _require_free(name, params)
        preset = strict_yaml.load(PRESET.read_text(encoding="utf-8"))
        (dataset,) = preset["datasets"].values()
        if features:
            with keys_as_options(images="--features"):
                preview = preview_features(*features, captions, boxes, sizes, skip=skip, listing=listing)
            sample: Sample | None = sample_features(preview)
            preview.source.update({"pictures": images} if images else {})
        elif images is None or boxes or sizes:
            message = (
                "nothing says where the pictures are" if images is None else "boxes and sizes are those of features"
            )
            fix = "give --images, or --features with a format and a path"
            raise InputError(message, where=f"data set {name}", fix=fix)
        else:
            preview = preview_pictures(images, captions, dataset["regions"], skip=skip, listing=listing)
            sample = sample_pictures(preview, device)
        lacking = _lacking(preview)
        entries = _entries(name, preview, _language(preview, language), preset, None if lacking else params)
        for section, added in entries.items():
            try:
                text = editing.insert(text, section, added)
            except ValueError as error:
                raise InputError(str(error), where=FILE, fix=f"write `{section}` out, without & and *") from error
        params = parse_params(text)
        write_text(FILE, text)
    lines = [*_summary(name, preview, sample, entries), *(f"  ({remark})" for remark in preview.remarks)]
    lines += ["", f"written to {FILE}: " + ", ".join(f"{key}.{each}" for key, part in entries.items() for each in part)]
    trained = next(iter(entries.get("runs", {})), None)
    return "\n".join([*lines, "", *_next(name, preview, trained, lacking, params.evaluate.split)])


def _require_free(name: str, params: Params) -> None:
    """Raise `InputError` unless a data set may have this name and none has it."""
    require_name(name, f"data set {name!r}")
    taken = {each.lower(): each for each in params.image_roots}
    if other := taken.get(name.lower()):
        fix = f"choose another name, or remove that one first: `selfalign remove {other}`"
        raise InputError(f"there is a data set {other!r} already", where=FILE, fix=fix)


def _entries(
    name: str, preview: SourcePreview, language: str | None, preset: dict[str, Any], params: Params | None
) -> dict[str, dict[str, Any]]:
    """By section, what goes into it; a run only where there are `params`, whose runs have other names."""
    (dataset,), (encoder,), (run,) = (preset[section].values() for section in ("datasets", "text_features", "runs"))
    encoded = _is_english(language) and _is_installed(encoder["model"])
    tokens = {"language": language or "blank_en", "min_count": _min_count(len(preview.captions))}
    tokens |= {key: dataset["tokens"][key] for key in ("tokenizer", "max_pieces") if encoded}
    source = {key: _plain(value) for key, value in preview.source.items()}
    added = {"source": source, "regions": preview.regions, "tokens": tokens}
    entries: dict[str, dict[str, Any]] = {"datasets": {name: added}}
    if encoded:
        entries["text_features"] = {name: encoder}
    if params:
        trained = _run_name(name, run["base"]["name"], params)
        entries["runs"] = {trained: _run(name, preview.captions_in("train"), run, encoded)}
    return entries


def _run_name(name: str, base: str, params: Params) -> str:
    taken = {each.lower() for runs in (params.runs, *params.optional.values()) for each in runs}
    found = f"{name}-{base.replace('_', '-')}"
    return next(each for each in (found, *(f"{found}-{n}" for n in range(2, 1000))) if each.lower() not in taken)


def _plain(value: Any) -> Any:
    """A value as YAML has it; a path without `.` and `..` in its middle."""
    if not isinstance(value, Path):
        return value
    text = os.path.normpath(value)
    if "${" in text:
        raise InputError("DVC takes ${ for a reference", where=text, fix="rename the folder or file")
    return text


def _language(preview: SourcePreview, asked: str | None) -> str | None:
    """`tokens.language` of the captions; None without captions.

    Raises InputError where the one that was asked for isn't installed, or doesn't cut these captions into words.
    """
    captions = preview.captions
    if not captions:
        return None
    found = asked
    if found is None:
        code = guess_language(captions[:: max(1, len(captions) // _SAMPLE)])
        installed = [name for name in get_installed_models() if name.startswith(f"{code}_core_")]
        found = installed[0] if installed else "blank_en" if code == "en" else f"blank:{code or 'xx'}"
    try:
        require_cut(load_language(found)[0], captions, found)
    except InputError:
        if asked is not None:
            raise
        return CHARACTERS  # spaCy's own wants a package that isn't there
    return found


def _is_english(language: str | None) -> bool:
    """By the name of a pipeline: en_core_web_sm, blank_en, blank:en."""
    return language is not None and re.search(r"(^|blank[_:])en(_|$)", language) is not None


def _is_installed(model: str) -> bool:
    try:
        return local_path(model).is_dir()
    except InputError:
        return False


def _min_count(captions: int) -> int:
    """Uses from which a word is learned: rare words of a small set are all that it has."""
    return 1 if captions < 1_000 else 2 if captions < 20_000 else 4


def _lacking(preview: SourcePreview) -> str | None:
    """Why nothing can be trained; None if something can."""
    if not preview.captions:
        return "there are no captions"
    empty = [split for split in ("train", "val") if not preview.captions_in(split)]
    return f"no caption is in the split {' or '.join(empty)}" if empty else None


def _run(name: str, captions: int, preset: dict[str, Any], encoded: bool) -> dict[str, Any]:
    """The preset's run on a data set with so many captions to train on: larger sets bear larger batches and vectors."""
    run = preset | {"dataset": name, "text": {"reads": "text_features" if encoded else "tokens"}}
    if not encoded:  # chosen by the studies "photographs-text" (the rate) and "photographs-vsrn"
        after_context = preset["losses"]["word_region"] | {"weight": 300.0, "locals": "contextual"}
        run |= {"learning_rate": 0.001, "losses": preset["losses"] | {"word_region": after_context}}
    if captions < _FEW:
        light = {"weight": 100.0}  # triplets are a sum over the batch
        losses = {name: run["losses"][name] | light for name in ("contrast", "word_region")}
        small = {"epochs": 15, "batch_size": 32, "learning_rate": 0.001, "decay_epochs": 10}
        return run | small | {"losses": run["losses"] | losses}
    if captions < 10 * _FEW:
        return run
    dim = 512 if captions < 100 * _FEW else 1024
    return run | {"epochs": 15, "decay_epochs": 10, "base": preset["base"] | {"dim": dim}}


def _summary(name: str, preview: SourcePreview, sample: Sample | None, entries: dict[str, dict[str, Any]]) -> list[str]:
    """What was found, a line a fact."""
    counts = np.array([len(entry.captions) for entry in preview.entries])
    each = f"{counts.min()} to {counts.max()}" if counts.min() != counts.max() else f"{counts.min()}"
    source, total, language = preview.source, int(counts.sum()), entries["datasets"][name]["tokens"]["language"]
    captions = f"{total:,} captions, {each} an image" if total else "no captions"
    imported = not READERS.has_own(source["format"])
    lines = [f"{name}: {len(counts):,} {'images' if imported else 'pictures'} in {source['images']}, {captions}"]
    if total:
        origin = "as the file says" if preview.entries[0].split else "by a hash of their ids"
        parts = ", ".join(f"{preview.splits[split]:,} {split}" for split in SPLITS if preview.splits[split])
        own = not imported or source["captions"] == source["images"]
        kind = source["format"] if own else kind_of(source["captions"]).name
        lines += [f"  captions  {source['captions']}, read as {_kind(kind, source['captions'])}; language: {language}"]
        lines += [f"  words     {line}" for line in _drawn(language)]
        lines += [f"  splits    {parts}, {origin}; a run learns from train alone, a search looks in all"]
    if sample is None:
        lines += ["  regions   none of the pictures that were tried can be read"]
        return lines
    what = f"imported from {source['format']}" if imported else "the same boxes everywhere, seen by an ImageNet network"
    lines += [f"  regions   {sample.boxes:.3g} boxes an image, {sample.dim:,} numbers each: {what}"]
    size = len(counts) * sample.boxes * (2 * sample.dim + 16) / 1e9
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    lines += [f"  disk      about {_size(size)} of regions; {_size(free)} are free"]
    if sample.rate:
        lines += [
            f"  time      regions: about {_time(len(counts) / sample.rate)} at {sample.rate:.1f} pictures/s here; "
            "each stage's start takes some seconds more"
        ]
    for run, settings in entries.get("runs", {}).items():
        text = "a sentence encoder reads the captions" if "text_features" in entries else "it learns the words itself"
        base, epochs = settings["base"], settings["epochs"]
        lines += [
            f"  run       {run}: a picture and a sentence become {base['dim']} numbers each ({base['name']}); {text}; "
            f"{epochs} epochs, about {_time(epochs * preview.captions_in('train') / _RATE)} on two cores"
        ]
    return lines


def _kind(format: str, captions: Path) -> str:
    """A reader's name for people: that of tables and JSON Lines by the file."""
    if format != "folder":
        return format
    return {".csv": "CSV", ".tsv": "TSV", ".jsonl": "JSON Lines"}.get(captions.suffix.lower(), "a table")


def _drawn(language: str) -> list[str]:
    """Which words get boxes, where the language has no parts of speech: all but stop words, or longer ones."""
    if language != CHARACTERS and not language.startswith(("blank_", "blank:")):
        return []
    which = "all words but stop words" if stop_words(language) else "words of more than three letters"
    which = "all characters" if language == CHARACTERS else which
    boxes = f"{language} has no parts of speech, so {which} get a box"
    return [f"{boxes}; with en_core_web_sm nouns, adjectives and verbs alone do" if _is_english(language) else boxes]


def _size(gigabytes: float) -> str:
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{max(1, round(gigabytes * 1e3))} MB"


def _time(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(1, round(seconds))} s"


def _next(name: str, preview: SourcePreview, run: str | None, lacking: str | None, evaluated: str) -> list[str]:
    """What to run."""
    extracted = READERS.has_own(preview.source["format"])
    if run is None:
        lines = [f"nothing is trained: {lacking}; pictures can be found by a picture:", f"  dvc repro regions@{name}"]
        picture = "photo.jpg" if extracted else preview.entries[0].id
        return [*lines, f"  selfalign search --dataset {name} --image {picture}"]
    lines = ["next:"]
    if preview.splits[evaluated]:
        lines += [f"  dvc repro evaluate@{run}"]
    else:
        lines += [f"  dvc repro train@{run}  # not evaluate@{run}: no image is in the split {evaluated}"]
    lines += [f"  selfalign index {run} {name}"]
    words = " ".join(preview.captions[0].split()[:12])
    lines += [f"  selfalign search --index {places.index(run, name)} {shlex.quote(words)}"]
    return [*lines, f"  selfalign serve {run}-{name}  # a page that searches while one types"]
