"""The token store: every caption of a data set as words, parts of speech and, optionally, word pieces.

One folder a data set: tokens.h5, vocabulary.json, recipe.json, index.json with the sha256 of tokens.h5 (and the stage's
README.md). The captions lie one after another in manifest order, ragged: caption c has the entries `offsets[c]` to
`offsets[c + 1]` of a flat array.

| dataset         | shape            | holds                                                        |
|-----------------|------------------|--------------------------------------------------------------|
| `words`         | i32 [W]          | numbers of the vocabulary                                    |
| `spans`         | i32 [W, 2]       | start and end of each word, in characters of the caption     |
| `pos`           | u8 [W]           | universal parts of speech, numbers of the recipe's pos_names |
| `word_offsets`  | i64 [C + 1]      |                                                              |
| `text`          | u8 [bytes]       | the captions exactly as they were, UTF-8                     |
| `text_offsets`  | i64 [C + 1]      |                                                              |
| `caption_image` | i32 [C]          | each caption's row in the manifest, rising                   |
| `image_id`      | bytes [N]        | ids in manifest order, UTF-8                                 |
| `piece_ids`     | i32 [P]          | numbers of the tokenizer's vocabulary                        |
| `piece_words`   | i32 [P]          | the word of its caption each piece is part of, -1 for none   |
| `piece_offsets` | i64 [C + 1]      |                                                              |

The last three are there only if the recipe has a tokenizer.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from extract.stores.hdf5 import Blocks, MappedHDF5, layout_problems, offsets_problem, write_hdf5
from extract.stores.intact import INDEX, CountedFile, Index
from extract.stores.recipe import FILE as RECIPE
from extract.stores.recipe import read_recipe_of, write_recipe
from extract.text.pieces import Pieces
from extract.text.vocabulary import UNKNOWN, read_vocabulary, word_numbers
from manifests.errors import InputError
from manifests.files import sha256, write_json
from manifests.tables import Manifest
from manifests.typed import Count, Digest, Written, checked, schema

FORMAT = "selfalign-tokens"
SCHEMA = 1
_BLOCK = 16_384  # images that are written together
_CHECKED = 8192  # captions that are checked together
_RAGGED = {
    "word_offsets": ("words", "spans", "pos"),
    "text_offsets": ("text",),
    "piece_offsets": ("piece_ids", "piece_words"),
}
_ARRAYS: dict[str, tuple[str, tuple[int | None, ...]]] = {
    **{
        "words": ("<i4", (None,)),
        "spans": ("<i4", (None, 2)),
        "pos": ("u1", (None,)),
        "word_offsets": ("<i8", (None,)),
    },
    **{"text": ("u1", (None,)), "text_offsets": ("<i8", (None,)), "caption_image": ("<i4", (None,))},
    **{"image_id": ("S", (None,)), "piece_ids": ("<i4", (None,)), "piece_words": ("<i4", (None,))},
    "piece_offsets": ("<i8", (None,)),
}


class TokenShards:
    """The shards of `extract.text.shards`, in the captions' order, with the facts of them all that their store needs.

    Parameters
    ----------
    paths, counts : of each shard the file and its captions.
    """

    def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
        self._shards, self.captions = [MappedHDF5(path) for path in paths], sum(counts)

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, number: int, name: str) -> np.ndarray:
        """An array of a shard."""
        return self._shards[number].read(name)

    def listed(self, number: int) -> list[str]:
        """The words of a shard, by their places in it."""
        text, ends = self.read(number, "listed").tobytes(), np.cumsum(self.read(number, "listed_lengths")).tolist()
        return [text[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]

    def uses(self, trained_on: Callable[[int, int], np.ndarray]) -> Counter[str]:
        """How often each word is used in the captions for which ``trained_on(start, stop)``, bool, is true; every word
        is there."""
        uses, first = Counter[str](), 0
        for number in range(len(self)):
            lengths, listed = self.read(number, "word_lengths"), self.listed(number)
            own = np.repeat(trained_on(first, first + len(lengths)), lengths)
            counts = np.bincount(self.read(number, "words")[own], minlength=len(listed))
            for word, count in zip(listed, counts.tolist(), strict=True):
                uses[word] += count
            first += len(lengths)
        return uses

    def blocks(self, name: str, change: Callable[[int, np.ndarray], np.ndarray] | None = None) -> Blocks:
        """An array of all shards, end to end, of the store's dtype. ``change(number, array)`` is applied to each."""
        dtype, (_, *width) = _ARRAYS[name]
        lengths = [len(self._shards[number][name]) for number in range(len(self))]
        own = (self.read(number, name) for number in range(len(self)))
        changed = (change(number, array) if change else array for number, array in enumerate(own))
        return Blocks((sum(lengths), *width), np.dtype(dtype), changed)

    def offsets(self, name: str) -> Blocks:
        """Where the items of these lengths begin, and the last ends, i64 [C + 1]."""

        def ends() -> Iterator[np.ndarray]:
            end = 0
            yield np.zeros(1, np.int64)
            for number in range(len(self)):
                own = np.cumsum(self.read(number, name), dtype=np.int64) + end
                end = int(own[-1])
                yield own

        return Blocks((self.captions + 1,), np.dtype(np.int64), ends())


@dataclass
class Counts:
    """Counts of words for the card: all, those outside the vocabulary, and those of each part of speech. Two counts
    reveal a wrong language: the train split's words outside the vocabulary, and captions of one word."""

    pos: np.ndarray
    words: int = 0
    unknown: int = 0
    unknown_in_train: tuple[int, int] = (0, 0)
    single: tuple[int, int] = (0, 0)


def write_tokens(
    folder: Path,
    shards: TokenShards,
    manifest: Manifest,
    vocabulary: list[str],
    recipe: dict[str, Any],
    trained_on: Callable[[int, int], np.ndarray],
) -> tuple[Counts, dict[str, Any]]:
    """Write the four files of a token store of all captions of a manifest; returns the card's counts, and the recipe.

    The format, its schema version and the vocabulary's size and sha256 are added to `recipe`. Memory holds a shard.
    """
    write_json(folder / "vocabulary.json", vocabulary)
    recipe = {
        **recipe,
        "format": FORMAT,
        "schema": SCHEMA,
        "vocabulary_size": len(vocabulary),
        "vocabulary_sha256": sha256(folder / "vocabulary.json"),
    }
    recipe_hash = write_recipe(folder, recipe)
    entries, counts = word_numbers(vocabulary), Counts(np.zeros(len(recipe["pos_names"]), np.int64))

    def numbered(number: int, words: np.ndarray) -> np.ndarray:
        table = np.array([entries.get(word, UNKNOWN) for word in shards.listed(number)], np.int32)
        unknown, lengths, first = table[words] == UNKNOWN, shards.read(number, "word_lengths"), counts.single[1]
        own = unknown[np.repeat(trained_on(first, first + len(lengths)), lengths)]
        counts.words += len(words)
        counts.unknown += int(unknown.sum())
        before, all_ = counts.unknown_in_train
        counts.unknown_in_train = before + int(own.sum()), all_ + len(own)
        counts.single = counts.single[0] + int((lengths == 1).sum()), first + len(lengths)
        return table[words]

    def counted(_: int, pos: np.ndarray) -> np.ndarray:
        counts.pos += np.bincount(pos, minlength=len(counts.pos))
        return pos

    starts = range(0, len(manifest), _BLOCK)
    images = (np.repeat(np.arange(n, n + len(own)), own) for n in starts for own in (_counts(manifest, n),))
    ids = (np.array([row.id.encode("utf-8") for row in manifest.images[n : n + _BLOCK]], bytes) for n in starts)
    arrays = {
        "words": shards.blocks("words", numbered),
        "spans": shards.blocks("spans"),
        "pos": shards.blocks("pos", counted),
        "word_offsets": shards.offsets("word_lengths"),
        "text": shards.blocks("text"),
        "text_offsets": shards.offsets("text_lengths"),
        "caption_image": Blocks((shards.captions,), np.dtype(np.int32), images),
        "image_id": Blocks((len(manifest),), np.dtype(f"S{max(1, manifest.id_bytes)}"), ids),
    }
    if recipe["tokenizer"]:
        arrays |= {name: shards.blocks(name) for name in ("piece_ids", "piece_words")}
        arrays["piece_offsets"] = shards.offsets("piece_lengths")
    path = folder / "tokens.h5"
    write_hdf5(path, arrays, {"schema": SCHEMA, "recipe_hash": recipe_hash})
    listed = {"file": path.name, "count": shards.captions, "sha256": sha256(path)}
    write_json(folder / INDEX, {"schema": SCHEMA, "images": len(manifest), "shards": [listed]})
    return counts, recipe


def _counts(manifest: Manifest, first: int) -> np.ndarray:
    """How many captions some images have."""
    return np.diff(manifest.first_caption[first : first + _BLOCK + 1])


class TokenIndex(Index):
    """``index.json``, as the word stage writes it."""

    schema_: schema(SCHEMA) = Field(alias="schema")
    images: Count
    shards: list[CountedFile] = Field(min_length=1, max_length=1)


class _Tokenizer(Written):
    size: Count
    start_id: Count | None
    end_id: Count | None


class _Recipe(Written):
    vocabulary_sha256: Digest
    pos_names: list[str]
    tokenizer: _Tokenizer | None


def _layout_problem(arrays: MappedHDF5, pieces: bool) -> str | None:
    """The mistake of a token store's arrays as a whole (shapes, offsets, counts of captions); None if there is none."""
    ragged = {name: flats for name, flats in _RAGGED.items() if pieces or name != "piece_offsets"}
    expected = {name: _ARRAYS[name] for name in ("caption_image", "image_id", *ragged, *chain(*ragged.values()))}
    if problem := next(layout_problems(arrays, expected), None):
        return problem
    image, images = arrays["caption_image"], len(arrays["image_id"])
    for offsets, flats in ragged.items():
        if len(arrays[offsets]) != len(image) + 1:
            return f"{offsets} has {len(arrays[offsets])} places, for {len(image)} captions"
        if problem := next(filter(None, (offsets_problem(arrays, offsets, flat) for flat in flats)), None):
            return problem
    if len(image) and not (image[0] >= 0 and image[-1] < images and (image[1:] >= image[:-1]).all()):
        return f"caption_image doesn't rise within the {images} images"
    for offsets, what in (("word_offsets", "has no word"), ("text_offsets", "is empty")):
        places = arrays[offsets]
        if not (rising := places[1:] > places[:-1]).all():
            return f"caption {np.argmin(rising)} {what}"
    return None


def _block_problem(arrays: MappedHDF5, start: int, stop: int, words: int, tags: int, pieces: int | None) -> str | None:
    """The mistake of captions `start` to `stop` - 1, with numbers below `words`, `tags` and (or None) `pieces`; None if
    there is none."""

    def own(name: str, offsets: str) -> np.ndarray:
        first, end = arrays[offsets][[start, stop]].tolist()
        return arrays[name][first:end]

    counts = np.diff(arrays["word_offsets"][start : stop + 1])
    ends: list[tuple[str, str, int, int | np.ndarray]] = [
        ("words", "word_offsets", 0, words), ("pos", "word_offsets", 0, tags),
    ]  # fmt: skip
    if pieces is not None:
        of_caption = np.repeat(counts, np.diff(arrays["piece_offsets"][start : stop + 1]))
        ends += [("piece_ids", "piece_offsets", 0, pieces), ("piece_words", "piece_offsets", -1, of_caption)]
    for name, offsets, least, end in ends:
        numbers = own(name, offsets)
        if not ((numbers >= least) & (numbers < end)).all():
            return f"{name} are not all numbers of {'the words of their caption' if name == 'piece_words' else end}"
    text, first = own("text", "text_offsets"), arrays["text_offsets"][start:stop] - arrays["text_offsets"][start]
    begins = (text & 0xC0) != 0x80  # a character
    try:
        text.tobytes().decode()
    except UnicodeDecodeError as error:
        return f"its text is not UTF-8 ({error.reason})"
    if not begins[first].all():
        return "a caption begins within a character"
    characters = np.add.reduceat(begins, first, dtype=np.int64)
    begin, end = own("spans", "word_offsets").T
    if not ((begin >= 0) & (begin <= end) & (end <= np.repeat(characters, counts))).all():
        return "spans are not all within their caption"
    return None


class TokenStore:
    """A token store, read through a memory map. Picklable, and safe under fork, spawn and forkserver.

    Opening reads the offsets of each caption's words and text. Captions are checked in blocks of 8,192, when one of
    them is first read: InputError names the mistake.

    Parameters
    ----------
    path : the store's folder. InputError if it is incomplete or its files don't belong together.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        again = "run the tokens stage of this data set again, or fetch the whole folder"
        missing = [name for name in ("tokens.h5", "vocabulary.json", "recipe.json") if not (self.path / name).is_file()]
        if missing:
            raise InputError(f"no token store: it lacks {', '.join(missing)}", where=self.path, fix=again)
        older = "run the tokens stage of this data set again, or use the version of the program that wrote it"
        self.recipe, self.recipe_hash = read_recipe_of(self.path, FORMAT, SCHEMA, older)
        recipe = checked(self.recipe, _Recipe, where=self.path / RECIPE, fix=again)
        if sha256(self.path / "vocabulary.json") != recipe.vocabulary_sha256:
            raise InputError(
                "not the vocabulary that this store was made with: its sha256 differs from the recipe's",
                where=self.path / "vocabulary.json",
                fix=again,
            )
        self._arrays = MappedHDF5(self.path / "tokens.h5")
        if self._arrays.attributes.get("recipe_hash") != self.recipe_hash:
            raise InputError(
                "made with another recipe than the one beside it", where=self.path / "tokens.h5", fix=again
            )
        self.vocabulary: list[str] = read_vocabulary(self.path / "vocabulary.json")
        self.pos_names: list[str] = recipe.pos_names
        self.has_pieces: bool = recipe.tokenizer is not None
        self._ends = len(self.vocabulary), len(self.pos_names), recipe.tokenizer.size if recipe.tokenizer else None
        self._checked: set[int] = set()
        self._refuse(_layout_problem(self._arrays, self.has_pieces))

    @property
    def num_captions(self) -> int:
        """C, over all splits."""
        return len(self._arrays["caption_image"])

    @cached_property
    def image_ids(self) -> list[str]:
        """The N image ids, in manifest order, images without captions included."""
        try:
            return [id.decode("utf-8") for id in self._arrays["image_id"].tolist()]
        except UnicodeDecodeError as error:
            self._refuse(f"its ids are not UTF-8 ({error.reason})")

    def words(self, caption: int) -> np.ndarray:
        """Vocabulary numbers of the T words of a caption, i32 [T]."""
        return self._arrays["words"][self._range("word_offsets", caption)]

    def spans(self, caption: int) -> np.ndarray:
        """Start and end of each word in characters of `text(caption)`, i32 [T, 2]."""
        return self._arrays["spans"][self._range("word_offsets", caption)]

    def pos(self, caption: int) -> np.ndarray:
        """Part of speech of each word, u8 [T], numbers of `pos_names`."""
        return self._arrays["pos"][self._range("word_offsets", caption)]

    def text(self, caption: int) -> str:
        """The caption as it was written."""
        return self._arrays["text"][self._range("text_offsets", caption)].tobytes().decode("utf-8")

    def word_texts(self, caption: int) -> list[str]:
        """The T words themselves, lower-cased, those outside the vocabulary included."""
        text = self.text(caption)
        return [text[start:end].lower() for start, end in self.spans(caption).tolist()]

    def pieces(self, caption: int) -> Pieces | None:
        """Word pieces (ids i32 [P], word i32 [P]) of a caption; None if the store has no tokenizer."""
        if not self.has_pieces:
            return None
        where = self._range("piece_offsets", caption)
        return Pieces(self._arrays["piece_ids"][where], self._arrays["piece_words"][where])

    def require_tokenizer(self) -> dict[str, Any]:
        """The recipe's facts of the tokenizer; InputError if the store has none."""
        if not self.has_pieces:
            raise InputError(
                "it has no word pieces",
                where=self.path,
                fix="set datasets.D.tokens.tokenizer to the folder of the encoder's tokenizer",
            )
        return self.recipe["tokenizer"]

    def word_pieces(self, caption: int) -> tuple[np.ndarray, np.ndarray]:
        """Places bool [P] of the word pieces that belong to a word, and their words i32 [N]: special tokens and
        punctuation belong to none.

        InputError if the store has no tokenizer, or all that is left of the caption belongs to no word.
        """
        self.require_tokenizer()
        pieces = self.pieces(caption)
        places = pieces.word >= 0
        if not places.any():
            raise InputError(
                f"no word piece of caption {caption}, {self.text(caption)!r}, belongs to a word",
                where=self.path,
                fix="raise datasets.D.tokens.max_pieces, or mend the caption in the data set's own file",
            )
        return places, pieces.word[places]

    def word_pieces_of(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The word pieces of captions `start` to `stop` - 1. Gives ids i32 [P], a mask [P] of the pieces that belong to
        a word, and the captions' offsets, i64 [stop - start + 1]. InputError as `word_pieces`."""
        self._require(start, stop)
        offsets = self._arrays["piece_offsets"][start : stop + 1]
        where = slice(int(offsets[0]), int(offsets[-1]))
        kept, offsets = self._arrays["piece_words"][where] >= 0, offsets - offsets[0]
        words = np.diff(np.concatenate(([0], np.cumsum(kept)))[offsets])
        if not words.all():
            self.word_pieces(start + int(np.argmin(words)))
        return np.array(self._arrays["piece_ids"][where]), kept, offsets

    def image(self, caption: int) -> int:
        """Row in the manifest of the image that a caption describes."""
        self._require_there(caption)
        return int(self._arrays["caption_image"][caption])

    def captions_of(self, image: int) -> range:
        """The captions of the image in row `image` of the manifest."""
        if not 0 <= image < len(self.first_caption) - 1:
            raise IndexError(f"{self.path} has no image {image}: it has {len(self.first_caption) - 1}")
        return range(*self.first_caption[image : image + 2].tolist())

    @cached_property
    def first_caption(self) -> np.ndarray:
        """int64 ``[N + 1]``: image n has the captions from entry n up to entry n + 1."""
        counts = np.bincount(self._arrays["caption_image"], minlength=len(self._arrays["image_id"]))
        return np.concatenate(([0], np.cumsum(counts)))

    def _range(self, offsets: str, caption: int) -> slice:
        self._require_there(caption)
        self._require(caption, caption + 1)
        start, end = self._arrays[offsets][caption : caption + 2]
        return slice(int(start), int(end))

    def _require_there(self, caption: int) -> None:
        if not 0 <= caption < self.num_captions:
            raise IndexError(f"{self.path} has no caption {caption}: it has {self.num_captions}")

    def _require(self, start: int, stop: int) -> None:
        """Check captions `start` to `stop` - 1, if that wasn't done yet."""
        for block in range(start // _CHECKED, -(-stop // _CHECKED)):
            if block not in self._checked:
                first = block * _CHECKED
                last = min(first + _CHECKED, self.num_captions)
                self._refuse(_block_problem(self._arrays, first, last, *self._ends))
                self._checked.add(block)

    def _refuse(self, problem: str | None) -> None:
        if problem:
            fix = "run the tokens stage of this data set again, or fetch the whole folder"
            raise InputError(problem, where=self.path / "tokens.h5", fix=fix)
