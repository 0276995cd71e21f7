"""The shards of a token store in the making: words of captions, numbered by a shard's own list of words.

They are merged once the vocabulary, which counts the words of all of them, is known (`extract.stores.tokens`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from extract.engine.cache import Place
from extract.engine.code import code_fingerprint
from extract.engine.finished import Staging
from extract.engine.maker import Advance, Maker
from extract.stores.hdf5 import write_hdf5
from extract.text.pieces import PieceTokenizer
from extract.text.settings import TokenSettings
from extract.text.words import Words, load_language, split_words
from manifests.errors import InputError
from manifests.tables import Manifest

PER_SHARD = 8192  # captions
_BATCH = 2048
CODE = code_fingerprint("extract.text.shards")


@dataclass(frozen=True)
class Captions:
    """Captions that follow each other in the manifest, the first one's number first."""

    first: int
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)


class WordShards(Maker[Captions]):
    """Makes shards of words.

    | dataset                      | shape        | holds                                       |
    |------------------------------|--------------|---------------------------------------------|
    | `words`                      | i32 [W]      | places in the shard's list of words         |
    | `listed`, `listed_lengths`   | u8, i32      | that list, UTF-8, and the bytes of each     |
    | `word_lengths`               | i32 [C]      | words of each caption                       |
    | `text`, `text_lengths`       | u8, i32 [C]  | the captions, UTF-8, and the bytes of each  |
    | `piece_lengths`              | i32 [C]      | word pieces of each caption                 |

    and `spans`, `pos`, `piece_ids` and `piece_words` as the token store has them.

    Parameters
    ----------
    manifest : its folder, opened for messages alone.
    staging, key : the folder of finished shards, and all that decides them beside language and tokenizer.

    Raises
    ------
    InputError : a spaCy pipeline or a tokenizer that isn't there.
    """

    def __init__(self, *, settings: TokenSettings, manifest: Path, staging: Path, key: Mapping[str, Any]):
        self.manifest, self.max_words = manifest, settings.max_words
        self.language, language = load_language(settings.language)
        self._tokenizer = PieceTokenizer(settings.tokenizer, settings.max_pieces) if settings.tokenizer else None
        self.recipe = {"language": language, "tokenizer": self._tokenizer.recipe if self._tokenizer else None}
        self.key = {**key, "recipe": self.recipe, "shard_code": CODE}
        self.finished = Staging(staging, self.key)

    def content(self, part: Captions) -> dict[str, Any]:
        texts = sha256("\0".join(part.texts).encode()).hexdigest()
        return {"first": part.first, "texts": texts, "captions": len(part)}

    def write(
        self, path: Path, part: Captions, known: Mapping[str, Place], advance: Advance
    ) -> tuple[dict[str, Any], int]:
        split, pieces = [], []
        for start in range(0, len(part), _BATCH):
            texts = part.texts[start : start + _BATCH]
            own = list(split_words(self.language, texts, self.max_words))
            for place, words in enumerate(own, start):
                if not words.words:
                    raise self._no_word(part.first + place)
            split += own
            if self._tokenizer:
                read = [it[: item.spans[-1, 1]] if item.cut else it for it, item in zip(texts, own, strict=True)]
                pieces += self._tokenizer.split(read, [item.spans for item in own])
            advance(len(texts))
        write_hdf5(path, _arrays(part.texts, split) | (_piece_arrays(pieces) if self._tokenizer else {}), {})
        return {"count": len(part), "cut": sum(item.cut for item in split)}, len(part)

    def _no_word(self, caption: int) -> InputError:
        listed = Manifest.open(self.manifest)
        row = int(np.searchsorted(listed.first_caption, caption, side="right")) - 1
        number = caption - int(listed.first_caption[row])
        return InputError(
            f"caption {number}, {listed.texts(caption, caption + 1)[0]!r}, has no word left without punctuation and "
            "white space",
            where=f"{listed.place}, image {listed.images[row].id!r}",
            fix="mend or remove the caption in the data set's own file and run the manifest stage again",
        )


def _arrays(texts: list[str], split: list[Words]) -> dict[str, np.ndarray]:
    listed: dict[str, int] = {}
    words = [listed.setdefault(word, len(listed)) for item in split for word in item.words]
    return {
        "words": np.array(words, np.int32),
        **dict(zip(("listed", "listed_lengths"), _text(listed), strict=True)),
        "spans": np.concatenate([np.empty((0, 2), np.int32), *(item.spans for item in split)]),
        "pos": np.concatenate([np.empty(0, np.uint8), *(item.pos for item in split)]),
        "word_lengths": np.array([len(item.words) for item in split], np.int32),
        **dict(zip(("text", "text_lengths"), _text(texts), strict=True)),
    }


def _piece_arrays(pieces: list[Any]) -> dict[str, np.ndarray]:
    none = np.empty(0, np.int32)
    return {
        "piece_ids": np.concatenate([none, *(item.ids for item in pieces)]),
        "piece_words": np.concatenate([none, *(item.word for item in pieces)]),
        "piece_lengths": np.array([len(item.ids) for item in pieces], np.int32),
    }


def _text(texts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Texts end to end in UTF-8, u8, and the bytes of each, i32."""
    encoded = [text.encode("utf-8") for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.array([len(text) for text in encoded], np.int32)
