"""Words of a caption, with their places in its text and their parts of speech, by spaCy.

Words are lower-cased. Punctuation and white space are dropped; everything else that spaCy's tokenizer cuts out stays
a word ("'s", "$", an emoji), and "T-shirt" is two.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import spacy
from spacy.attrs import IDX, IS_PUNCT, IS_SPACE, LENGTH, LOWER, POS
from spacy.language import Language
from spacy.parts_of_speech import IDS

from extract.text import scripts
from extract.text.parts_of_speech import POS_NAMES
from manifests.errors import InputError
from manifests.files import fingerprint, sha256
from manifests.registry import Registry

_POS_NUMBER = np.zeros(max(IDS.values()) + 1, np.uint8)
_POS_NUMBER[[IDS[name] for name in POS_NAMES]] = range(len(POS_NAMES))
_POS_NUMBER[IDS["CONJ"]] = POS_NAMES.index("CCONJ")  # the tag's name before Universal Dependencies 2

_NOT_FOR_WORDS = (
    "parser", "ner", "senter", "sentencizer", "lemmatizer", "trainable_lemmatizer", "entity_linker", "entity_ruler",
    "span_ruler", "spancat", "textcat", "textcat_multilabel",
)  # fmt: skip
LANGUAGES: Registry[Callable[[], tuple[Language, dict[str, str]]]] = Registry("language")
"""Pipelines of other packages: functions with the result of `load_language`."""

_BATCH = 512
_WORD = 64  # characters a word, so far as a caption is read; a file with longer ones throughout is no text


class Words(NamedTuple):
    """The T words of one caption."""

    words: list[str]  # lower-cased
    spans: np.ndarray  # i32 [T, 2], start and end of each word in characters of the caption
    pos: np.ndarray  # u8 [T], numbers of POS_NAMES
    cut: bool  # whether there were more


def load_language(language: str) -> tuple[Language, dict[str, str]]:
    """The spaCy pipeline of `language` (see `TokenSettings`), and its facts for a recipe.

    Pipes that neither cut nor tag words are left out. InputError for a pipeline that is missing or can't load.
    """
    if language == "blank_en":
        return spacy.blank("en"), {"name": language}
    if language == scripts.NAME:
        return scripts.characters(), {"name": language}
    try:
        nlp = spacy.load(language, exclude=_NOT_FOR_WORDS)
    except (OSError, ValueError, ImportError) as error:
        with suppress(InputError):
            return LANGUAGES.find(language)()
        raise _no_pipeline(language, error) from error
    if nlp.path is None:  # a bare pipeline, `blank:zh`
        return nlp, {"name": language}
    files = {
        file.relative_to(nlp.path).as_posix(): sha256(file) for file in sorted(nlp.path.rglob("*")) if file.is_file()
    }
    name = f"{nlp.meta['lang']}_{nlp.meta['name']}"
    return nlp, {"name": name, "version": nlp.meta["version"], "files_sha256": fingerprint(files)}


def _no_pipeline(language: str, error: Exception) -> InputError:
    if Path(language).exists():
        reason = f"the spaCy pipeline in this folder doesn't load ({error})"
        return InputError(reason, where=language, fix="name the folder that holds its config.cfg and meta.json")
    if "/" in language or "\\" in language:
        return InputError(
            "no such folder", where=language, fix="set language to the folder of a spaCy pipeline, or to its name"
        )
    if spacy.util.is_package(language):
        reason = f"the installed spaCy pipeline doesn't load ({error})"
        return InputError(reason, where=f"language: {language}", fix="install what it names, or a version that fits")
    if language.startswith("blank"):
        return InputError(
            f"spaCy makes no such bare pipeline ({error})",
            where=f"language: {language}",
            fix="write blank: and a language's code, such as blank:zh, and install what it names; or set language to "
            f"{scripts.NAME}, which needs nothing",
        )
    return InputError(
        "no spaCy pipeline of this name is installed",
        where=f"language: {language}",
        fix=f"run `python -m spacy download {language}`, or install its wheel, or set language to the path of a copy; "
        '"blank_en" does without parts of speech',
    )


def split_words(nlp: Language, captions: Iterable[str], max_words: int) -> Iterator[Words]:
    """The first `max_words` words of each caption, in order, a batch at a time. A caption may turn out to have none."""
    lower = nlp.vocab.strings
    most = min(nlp.max_length, _WORD * max_words)
    begun = ((text[:most], len(text) > most) for text in captions)
    for doc, longer in nlp.pipe(begun, batch_size=_BATCH, as_tuples=True):
        table = doc.to_array([LOWER, IDX, LENGTH, POS, IS_PUNCT, IS_SPACE]).reshape(-1, 6)
        table = table[(table[:, 4] | table[:, 5]) == 0]
        cut = longer or len(table) > max_words
        table = table[:max_words]
        start, length = table[:, 1].astype(np.int32), table[:, 2].astype(np.int32)
        yield Words(
            [lower[number] for number in table[:, 0].tolist()],
            np.stack((start, start + length), axis=1),
            _POS_NUMBER[table[:, 3]],
            cut,
        )
