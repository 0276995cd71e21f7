"""The word stage: a manifest's captions become a token store.

Words are lower-cased, punctuation and white space are dropped (`extract.text.words`). The caption itself is stored as
it was written, with each word's place in it. The vocabulary comes from the train split alone: it is counted
once all shards of captions are finished, and then they are merged. Memory holds a shard, and the words that there are.
"""

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from extract.cards.render import render
from extract.engine.build import building
from extract.engine.code import code_fingerprint
from extract.engine.maker import ShardJob, Workers, parts_of
from extract.stores.made import note_made
from extract.stores.tokens import Counts, TokenShards, write_tokens
from extract.text.parts_of_speech import POS_NAMES
from extract.text.scripts import SAMPLE, require_cut
from extract.text.settings import MAX_WORDS, TokenSettings
from extract.text.shards import PER_SHARD, Captions, WordShards
from extract.text.vocabulary import build_vocabulary, read_vocabulary, word_numbers
from manifests.errors import InputError
from manifests.files import fingerprint, whole_folder, write_text
from manifests.schema import SPLITS
from manifests.tables import Manifest, manifest_sha256

CODE = code_fingerprint("extract.stages.tokens")
_LIBRARIES = ("numpy", "h5py", "spacy")
_PIECE_LIBRARIES = ("tokenizers", "transformers")


def run(
    *,
    manifest: Path,
    settings: TokenSettings,
    out: Path,
    dataset: str | None = None,
    staging: Path | None = None,
    workers: Workers | None = None,
) -> None:
    """Write the token store of `manifest` to the folder `out`, whole or not at all. Pictures without captions make an
    empty one.

    Parameters
    ----------
    dataset : its name, for messages; by default that of the folder which `out` is in.
    staging : folder below which finished shards wait for the others; by default beside `out`.
    workers : which workers split captions.

    Raises InputError for a caption without a word, a spaCy pipeline or a tokenizer that isn't there, or a vocabulary
    that can't be had.
    """
    out, listed = Path(out), Manifest.open(manifest)
    dataset, staging = dataset or out.absolute().parent.name, staging or out.parent / ".staging"
    reused = read_vocabulary(settings.vocabulary) if settings.vocabulary else None
    if reused is None and listed.num_captions and not listed.caption_counts[listed.rows_in("train")].any():
        raise InputError(
            "no caption is in the train split, so there is nothing to make a vocabulary of",
            where=manifest,
            fix="set `vocabulary` to the vocabulary.json of the data set that the model is trained on",
        )
    key = {"manifest": manifest_sha256(manifest), "settings": settings.model_dump(mode="json"), "code": CODE}
    key["vocabulary"] = fingerprint(reused)
    work = {"settings": settings, "manifest": Path(manifest), "staging": staging, "key": key}
    maker, title = WordShards(**work), f"tokens {dataset}"
    if reused is None:
        require_cut(maker.language, listed.texts(0, min(SAMPLE, listed.num_captions)), settings.language)
    parts = parts_of(listed.num_captions, PER_SHARD, lambda start, stop: Captions(start, listed.texts(start, stop)))
    job = ShardJob(maker, parts, title, "captions", WordShards, work, on_device=False)
    with building(out, f"tokens of {out}", maker.key, [job], title=title, workers=workers) as built:
        if built is None:
            return
        shards = TokenShards([Path(done["path"]) for done in built[0]], [done["count"] for done in built[0]])
        cut, trained_on = sum(done["cut"] for done in built[0]), _trained_on(listed)
        vocabulary = reused or build_vocabulary(shards.uses(trained_on), settings.min_count)
        if not word_numbers(vocabulary) and listed.num_captions:
            raise InputError(
                f"no word is used {settings.min_count} times in the train split, so the vocabulary is empty",
                where=manifest,
                fix="lower min_count",
            )
        note = f"{cut:,} caption{'s were' if cut > 1 else ' was'} cut to {settings.max_words} words" if cut else ""
        recipe = {
            **maker.recipe,
            "min_count": None if reused else settings.min_count,
            "pos_names": list(POS_NAMES),
            # Named only where somebody set it: stores made before it could be set keep their recipe.
            **({"max_words": settings.max_words} if settings.max_words != MAX_WORDS else {}),
        }
        with whole_folder(out) as folder:
            counts, recipe = write_tokens(folder, shards, listed, vocabulary, recipe, trained_on)
            write_text(folder / "README.md", _card(listed, recipe, counts, note))
        note_made(out, fingerprint(recipe), *_LIBRARIES, *(_PIECE_LIBRARIES if settings.tokenizer else ()))
        for line in [note] * bool(note) + ([] if reused else _doubts(counts)):
            tqdm.write(line)


def _doubts(counts: Counts) -> list[str]:
    """Warnings about the words of captions: many unknown ones, many captions of one word."""
    unknown, single = (part / max(all_, 1) for part, all_ in (counts.unknown_in_train, counts.single))
    doubts = []
    if unknown > 0.2:
        doubts.append(
            f"{unknown:.0%} of the train split's words are unknown: is `language` right, `min_count` too high?"
        )
    if single > 0.2:
        doubts.append(f"{single:.0%} of the captions are one word: is `language` right?")
    return [f"tokens: {line}" for line in doubts]


def _trained_on(listed: Manifest) -> Any:
    """Whether captions `start` to `stop` - 1 are of the train split, bool."""
    train = listed.splits == SPLITS.index("train")

    def of(start: int, stop: int) -> np.ndarray:
        rows = np.searchsorted(listed.first_caption, np.arange(start, stop), side="right") - 1
        return train[rows]

    return of


def _card(listed: Manifest, recipe: dict[str, Any], counts: Counts, cut: str) -> str:
    """README.md for the person who receives the folder; `cut` says how many captions were cut."""
    per_split = {split: listed.caption_counts[listed.rows_in(split)] for split in SPLITS}
    order = np.argsort(-counts.pos, kind="stable")
    tags = [f"{POS_NAMES[tag]} {counts.pos[tag]}" for tag in order if counts.pos[tag]]
    language, tokenizer, min_count = (recipe[key] for key in ("language", "tokenizer", "min_count"))
    pieces = "none"
    if tokenizer:
        bound = f"at most {tokenizer['max_pieces']} a caption" if tokenizer["max_pieces"] else "captions whole"
        pieces = f"`{tokenizer['class']}`, {tokenizer['size']} entries, {bound}"
    return render(
        "tokens.md.jinja",
        captions=listed.num_captions,
        images=len(listed),
        splits=[(split, len(own), own.sum()) for split, own in per_split.items()],
        words=counts.words,
        cut=cut,
        language=" ".join(language[key] for key in ("name", "version") if key in language),
        size=recipe["vocabulary_size"],
        origin="taken from another data set" if min_count is None else f"words used {min_count} times or more in train",
        unknown=counts.unknown,
        tags=", ".join(tags) or "none",
        pieces=pieces,
        recipe=fingerprint(recipe),
    )
