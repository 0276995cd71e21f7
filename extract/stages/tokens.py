"""The word stage: a manifest's captions become a token store.

Words are lower-cased, punctuation and white space are dropped (`extract.text.words`); the caption itself is stored as
it was written, and every word knows its place in it. The vocabulary comes from the train split alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from extract.stores.recipe import note_made
from extract.stores.tokens import Ragged, TokenStore, write_tokens
from extract.text.parts_of_speech import POS_NAMES
from extract.text.pieces import PieceTokenizer
from extract.text.scripts import require_cut
from extract.text.settings import MAX_WORDS, TokenSettings
from extract.text.vocabulary import UNKNOWN, build_vocabulary, read_vocabulary, word_numbers
from extract.text.words import load_language, split_words
from manifests.errors import InputError
from manifests.files import whole_folder, write_text
from manifests.locks import one_writer
from manifests.progress import progress
from manifests.schema import SPLITS
from manifests.tables import Manifest, manifest_sha256

_BATCH = 2048
_LIBRARIES = ("numpy", "h5py", "spacy")
_PIECE_LIBRARIES = ("tokenizers", "transformers")


def _decides(*, manifest: Path, settings: TokenSettings, out: Path) -> dict[str, Any]:
    """What decides a token store, as JSON."""
    return {"manifest": manifest_sha256(manifest), "settings": settings.model_dump(mode="json")}


@one_writer("tokens", _decides)
def run(*, manifest: Path, settings: TokenSettings, out: Path) -> None:
    """Write the token store of `manifest` to the folder `out`, whole or not at all. Pictures without captions make an
    empty one.

    Raises InputError for a caption without a word, a spaCy pipeline or a tokenizer that isn't there, or a vocabulary
    that can't be had.
    """
    listed = Manifest.open(manifest)
    reused = read_vocabulary(settings.vocabulary) if settings.vocabulary else None
    if reused is None and listed.num_captions and not listed.caption_counts[listed.rows_in("train")].any():
        raise InputError(
            "no caption is in the train split, so there is nothing to make a vocabulary of",
            where=manifest,
            fix="set `vocabulary` to the vocabulary.json of the data set that the model is trained on",
        )
    nlp, language = load_language(settings.language)
    if reused is None:
        require_cut(nlp, listed.texts(0, min(1000, listed.num_captions)), settings.language)
    tokenizer = PieceTokenizer(settings.tokenizer, settings.max_pieces) if settings.tokenizer else None

    words, spans, pos, text = Ragged(np.int32), Ragged(np.int32, (2,)), Ragged(np.uint8), Ragged(np.uint8)
    pieces = (Ragged(np.int32), Ragged(np.int32)) if tokenizer else None
    cut = 0
    found: dict[str, int] = {}  # every word, numbered as it is met: the vocabulary is known only at the end
    caption_image = listed.caption_rows
    with progress(what="words", unit="captions", total=len(caption_image)) as bar:
        for first in range(0, len(caption_image), _BATCH):
            texts = listed.texts(first, min(first + _BATCH, len(caption_image)))
            text.add([np.frombuffer(its_text.encode("utf-8"), np.uint8) for its_text in texts])
            split = list(split_words(nlp, texts, settings.max_words))
            cut += sum(item.cut for item in split)
            for caption, its_words in enumerate(split, first):
                if not its_words.words:
                    raise _no_word(listed, caption)
            words.add([np.array([found.setdefault(w, len(found)) for w in item.words], np.int32) for item in split])
            spans.add([item.spans for item in split])
            pos.add([item.pos for item in split])
            if tokenizer:
                read = [it[: item.spans[-1, 1]] if item.cut else it for it, item in zip(texts, split, strict=True)]
                split_pieces = tokenizer.split(read, [item.spans for item in split])
                pieces[0].add([item.ids for item in split_pieces])
                pieces[1].add([item.word for item in split_pieces])
            bar.update(len(texts))

    trained_on = (listed.splits == SPLITS.index("train"))[caption_image]
    uses = np.bincount(words.flat[np.repeat(trained_on, words.lengths)], minlength=len(found))
    vocabulary = reused or build_vocabulary(dict(zip(found, uses.tolist(), strict=True)), settings.min_count)
    numbers = word_numbers(vocabulary)
    if not numbers and listed.num_captions:
        raise InputError(
            f"no word is used {settings.min_count} times in the train split, so the vocabulary is empty",
            where=manifest,
            fix="lower min_count",
        )
    words.renumber(np.array([numbers.get(word, UNKNOWN) for word in found], np.int32))
    doubts = [] if reused else _doubts(words, trained_on)

    told = f"{cut:,} caption{'s were' if cut > 1 else ' was'} cut to {settings.max_words} words" if cut else ""
    libraries = _LIBRARIES + (_PIECE_LIBRARIES if tokenizer else ())
    with whole_folder(out) as folder:
        write_tokens(
            folder,
            words=words,
            spans=spans,
            pos=pos,
            text=text,
            pieces=pieces,
            caption_image=caption_image,
            image_ids=listed.ids,
            vocabulary=vocabulary,
            recipe={
                "language": language,
                "min_count": None if reused else settings.min_count,
                "pos_names": list(POS_NAMES),
                "tokenizer": tokenizer.recipe if tokenizer else None,
            }
            # Named only where somebody set it: stores made before it could be set keep their recipe.
            | ({"max_words": settings.max_words} if settings.max_words != MAX_WORDS else {}),
        )
        write_text(folder / "README.md", _card(TokenStore(folder), listed, words, pos, told))
    note_made(out, TokenStore(out).recipe_hash, *libraries)
    for line in [told] * bool(told) + doubts:
        tqdm.write(line)


def _doubts(words: Ragged, trained_on: np.ndarray) -> list[str]:
    """What seems to be wrong with the words ``[C]`` of captions; the vocabulary was made of some."""
    own = words.flat[np.repeat(trained_on, words.lengths)]
    unknown, single = (own == UNKNOWN).mean(), (np.asarray(words.lengths) == 1).mean()
    told = []
    if unknown > 0.2:
        told.append(f"{unknown:.0%} of the train split's words are unknown: is `language` right, `min_count` too high?")
    if single > 0.2:
        told.append(f"{single:.0%} of the captions are one word: is `language` right?")
    return [f"tokens: {line}" for line in told]


def _no_word(listed: Manifest, caption: int) -> InputError:
    row = int(listed.caption_rows[caption])
    number = caption - int(listed.first_caption[row])
    return InputError(
        f"caption {number}, {listed.texts(caption, caption + 1)[0]!r}, has no word left without punctuation and white "
        "space",
        where=f"{listed.place}, image {listed.images[row].id!r}",
        fix="mend or remove the caption in the data set's own file and run the manifest stage again",
    )


_CARD = """# Captions as words

{captions} captions of {images} images, made by SelfAlign's word stage.

| split | images | captions |
|---|---|---|
{splits}

- Words: {words}, lower-cased, without punctuation and white space, cut by spaCy ({language}).{cut}
- Vocabulary: {size} entries ({origin}, after `<pad> <unk> <start> <end>`); {unknown} words are `<unk>`.
- Parts of speech: {tags}.
- Word pieces: {pieces}.
- Recipe: `{recipe}`.

`tokens.h5` holds the numbers, `vocabulary.json` what `words` count, `recipe.json` how they were made and `pos_names`.
Everything of caption c lies between two offsets; `spans` are characters of its text. With h5py alone:

```python
import h5py, json
file, vocabulary, c = h5py.File("tokens.h5", locking=False), json.load(open("vocabulary.json")), 0
start, end = file["text_offsets"][c : c + 2]
print(file["image_id"][file["caption_image"][c]].decode(), file["text"][start:end].tobytes().decode())
start, end = file["word_offsets"][c : c + 2]
print([vocabulary[word] for word in file["words"][start:end]], file["spans"][start:end].tolist())
```

With SelfAlign installed:

```python
from extract.stores.tokens import TokenStore
store = TokenStore(".")
print(store.text(0), store.word_texts(0), [store.pos_names[tag] for tag in store.pos(0)])
```
"""


def _card(store: TokenStore, listed: Manifest, words: Ragged, pos: Ragged, cut: str) -> str:
    """README.md for the person who receives the folder; `cut` says how many captions were cut."""
    per_split = {split: listed.caption_counts[listed.rows_in(split)] for split in SPLITS}
    counts = np.bincount(pos.flat, minlength=len(POS_NAMES))
    tags = [f"{POS_NAMES[tag]} {counts[tag]}" for tag in np.argsort(-counts, kind="stable") if counts[tag]]
    language, tokenizer, min_count = (store.recipe[key] for key in ("language", "tokenizer", "min_count"))
    pieces = "none"
    if tokenizer:
        bound = f"at most {tokenizer['max_pieces']} a caption" if tokenizer["max_pieces"] else "captions whole"
        pieces = f"`{tokenizer['class']}`, {tokenizer['size']} entries, {bound}"
    return _CARD.format(
        captions=store.num_captions,
        images=len(listed),
        splits="\n".join(f"| {split} | {len(counts)} | {counts.sum()} |" for split, counts in per_split.items()),
        words=len(pos.flat),
        cut=f" {cut}: their text is whole." if cut else "",
        language=" ".join(language[key] for key in ("name", "version") if key in language),
        size=len(store.vocabulary),
        origin="taken from another data set" if min_count is None else f"words used {min_count} times or more in train",
        unknown=int((words.flat == UNKNOWN).sum()),
        tags=", ".join(tags) or "none",
        pieces=pieces,
        recipe=store.recipe_hash,
    )
