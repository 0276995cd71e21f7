"""Captions of no data set, read in memory as a run reads those of its own: words, word pieces, an encoder's states."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.stores.recipe import require_same_recipe
from extract.text.encoder import PieceEncoder, encoder_recipe, load_encoder
from extract.text.parts_of_speech import POS_NAMES
from extract.text.pieces import PieceTokenizer
from extract.text.settings import MAX_WORDS, TextFeatureSettings, TokenSettings
from extract.text.vocabulary import UNKNOWN, read_vocabulary, word_numbers
from extract.text.words import Words, load_language, split_words
from manifests.errors import InputError
from manifests.files import sha256
from train.batches import WordBatch, piece_batch, word_batch
from train.data import Word
from train.words import at_words


@dataclass(frozen=True)
class RunWords:
    """How a run reads captions.

    tokens : settings of the word stage of the run's data set.
    pieces : whether the run reads word pieces.
    encoder : settings of its text features, if it reads those.
    vocabulary : the `vocabulary.json` that it was trained with.
    recipe : the run's record of its data: `{"tokens": ..., "text_features": ...}` and more.
    """

    tokens: TokenSettings
    pieces: bool
    encoder: TextFeatureSettings | None
    vocabulary: Path
    recipe: dict[str, Any]

    def require_vocabulary(self) -> None:
        """Raise `InputError` unless the vocabulary is the one of the run's record."""
        try:
            found = sha256(self.vocabulary)
        except OSError as error:
            raise InputError(
                f"the run's vocabulary can't be read ({error.strerror})",
                where=self.vocabulary,
                fix="run the tokens stage of the run's data set",
            ) from error
        if found != self.recipe["tokens"]["vocabulary_sha256"]:
            raise InputError(
                "it is not the vocabulary that the run was trained with",
                where=self.vocabulary,
                fix="train the run again",
            )


@dataclass(frozen=True)
class ReadCaptions:
    """B captions as a model reads them.

    words : of each caption all words, in the order of ``batch.word``.
    unknown : of each caption those that the run's vocabulary lacks; a run of word pieces knows all words.
    language : the name of the language or pipeline that cut them (`TokenSettings.language`).
    """

    texts: Sequence[str]
    words: list[list[Word]]
    unknown: list[list[Word]]
    batch: WordBatch
    language: str


class CaptionReader:
    """Reads captions as a run does. Language, tokenizer and encoder are loaded once.

    Parameters
    ----------
    device : torch device of a text encoder.

    Raises
    ------
    InputError : a language, tokenizer, encoder or vocabulary that isn't there or isn't the run's.
    """

    def __init__(self, words: RunWords, *, device: str = "cpu"):
        words.require_vocabulary()
        self.vocabulary = words.vocabulary
        self._settings, self._device, self._pieces = words.tokens, device, words.pieces
        self._numbers = word_numbers(read_vocabulary(words.vocabulary))
        self._language, language = load_language(words.tokens.language)
        self._name = language.get("name", "")
        ours: dict[str, Any] = {"language": language, "max_words": words.tokens.max_words}
        if words.pieces:  # a tokenizer takes seconds to load
            if words.tokens.tokenizer is None:
                raise InputError(
                    "the run reads word pieces, and its data set has no tokenizer",
                    where="datasets.D.tokens.tokenizer",
                    fix="name the tokenizer's folder",
                )
            self._tokenizer = PieceTokenizer(words.tokens.tokenizer, words.tokens.max_pieces)
            ours["tokenizer"] = self._tokenizer.recipe
        theirs = {"max_words": MAX_WORDS} | words.recipe["tokens"]
        _require_same(ours, {name: theirs.get(name) for name in ours})
        self._encoder_settings = words.encoder
        if words.encoder:
            ours = {"encoder": encoder_recipe(words.encoder.model, words.encoder.revision)}
            ours |= {"layer": words.encoder.layer}
            _require_same(ours, {name: words.recipe["text_features"][name] for name in ours})

    @cached_property
    def _encoder(self) -> PieceEncoder | None:
        chosen = self._encoder_settings
        if chosen is None:
            return None
        encoder = PieceEncoder(load_encoder(chosen.model, chosen.revision), chosen.layer)
        encoder.require_vocabulary(self._tokenizer.recipe["size"], f"encoder {chosen.model!r}")
        return encoder.eval().requires_grad_(False).to(self._device)

    def read(self, texts: Sequence[str]) -> ReadCaptions:
        """Read captions. InputError names one without a word, and one that the encoder can't read."""
        split = list(split_words(self._language, texts, self._settings.max_words))
        for text, own in zip(texts, split, strict=True):
            if not own.words:
                raise InputError("it has no word", where=f"text {text!r}", fix="name the things to be seen")
        words = [_words(own) for own in split]
        if self._pieces:
            batch, unknown = self._piece_batch(texts, split), [[] for _ in texts]
        else:
            numbers = [np.array([self._numbers.get(word, UNKNOWN) for word in own.words], np.int32) for own in split]
            batch = word_batch(numbers, [own.pos for own in split])
            unknown = [
                [word for word, number in zip(own, ids.tolist(), strict=True) if number == UNKNOWN]
                for own, ids in zip(words, numbers, strict=True)
            ]
        return ReadCaptions(texts, words, unknown, batch, self._name)

    def _piece_batch(self, texts: Sequence[str], split: Sequence[Words]) -> WordBatch:
        # A caption that is cut to so many words is cut there for the tokenizer too.
        read = [text[: own.spans[-1, 1]] if own.cut else text for text, own in zip(texts, split, strict=True)]
        pieces = self._tokenizer.split(read, [own.spans for own in split])
        batch = piece_batch(pieces, [own.pos for own in split])
        for text, there in zip(texts, batch.mask.any(dim=1).tolist(), strict=True):
            if not there:
                raise InputError("no word piece of it belongs to a word", where=f"text {text!r}", fix="use other words")
        if self._encoder is None:
            return batch
        whole = batch.pieces.to(self._device)
        with torch.inference_mode():
            # As the stage keeps them: float16.
            states = self._encoder(whole.clamp(min=0), whole >= 0).to(torch.float16).cpu()
        if not torch.isfinite(states[batch.pieces >= 0]).all():
            raise InputError("the encoder's states are NaN or beyond float16", where=f"{texts}", fix="use other words")
        return replace(batch, features=at_words(states, batch), pieces=None, place=None)


def _words(own: Words) -> list[Word]:
    spans, tags = own.spans.tolist(), own.pos.tolist()
    return [
        Word(text, start, end, POS_NAMES[tag]) for text, (start, end), tag in zip(own.words, spans, tags, strict=True)
    ]


def _require_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    require_same_recipe(ours, "the captions at hand", theirs, "the captions that the run was trained on")
