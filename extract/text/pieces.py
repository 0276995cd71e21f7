"""Word pieces of a caption by a Hugging Face tokenizer, each aligned to the word that it is a piece of."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from extract.packages import local_path
from manifests.errors import InputError
from manifests.files import sha256

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "*.model",
)  # fmt: skip


class Pieces(NamedTuple):
    """The P word pieces of one caption, special tokens included."""

    ids: np.ndarray  # i32 [P], the tokenizer's numbers
    word: np.ndarray  # i32 [P], the number of its word in the caption; -1 for special tokens and punctuation


class PieceTokenizer:
    """A fast Hugging Face tokenizer from a local folder; nothing is fetched.

    Parameters
    ----------
    folder : with the files of `save_pretrained`; may be one of a package (`extract.packages`).
    max_pieces : captions are cut to so many pieces, special tokens included; None keeps them whole.
    """

    def __init__(self, folder: Path, max_pieces: int | None):
        from transformers import AutoTokenizer  # takes seconds, and only some data sets need it

        folder = local_path(str(folder))
        if not folder.is_dir():
            raise _no_tokenizer(folder, "no such folder")
        if not (files := sorted({file for pattern in _FILES for file in folder.glob(pattern)})):
            raise _no_tokenizer(folder, "holds no tokenizer.json (or vocab.txt)")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
            self._tokenizer("a word", verbose=False)
        except Exception as error:  # transformers and tokenizers raise whatever damaged files lead them to
            raise _no_tokenizer(folder, f"no tokenizer that loads ({error})") from error
        if not self._tokenizer.is_fast:
            raise _no_tokenizer(folder, "a slow tokenizer, which can't say where its pieces lie in the caption")
        if max_pieces is not None and max_pieces <= (special := self._tokenizer.num_special_tokens_to_add()):
            raise InputError(
                f"max_pieces is {max_pieces}, which the {special} special tokens fill",
                where=folder,
                fix="raise max_pieces (32 is usual for captions)",
            )
        self._max_pieces = max_pieces
        self.recipe = {
            "class": type(self._tokenizer).__name__,
            "files_sha256": {file.name: sha256(file) for file in files},
            "max_pieces": max_pieces,
            "pad_id": self._tokenizer.pad_token_id,
            "start_id": _first(self._tokenizer.cls_token_id, self._tokenizer.bos_token_id),
            "end_id": _first(self._tokenizer.sep_token_id, self._tokenizer.eos_token_id),
            "size": len(self._tokenizer),
        }

    def split(self, captions: Sequence[str], spans: Sequence[np.ndarray]) -> list[Pieces]:
        """The pieces of each caption, given its words' `spans` (i32 [T, 2], see `Words`).

        A piece belongs to the word that it shares most characters with, the first of equals.
        """
        encoded = self._tokenizer(
            list(captions),
            truncation=self._max_pieces is not None,
            max_length=self._max_pieces,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            Pieces(np.array(ids, np.int32), _word_of_each(np.array(offsets, np.int32).reshape(-1, 2), words))
            for ids, offsets, words in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True)
        ]


def _first(*ids: int | None) -> int | None:
    return next((number for number in ids if number is not None), None)


def _word_of_each(pieces: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Number of the word that each piece overlaps most, or -1: i32 [P, 2], i32 [T, 2] -> i32 [P]."""
    shared = np.minimum(pieces[:, None, 1], words[None, :, 1]) - np.maximum(pieces[:, None, 0], words[None, :, 0])
    return np.where(shared.max(axis=1) > 0, shared.argmax(axis=1), -1).astype(np.int32)


def _no_tokenizer(folder: Path, what: str) -> InputError:
    return InputError(
        what,
        where=f"tokenizer: {folder}",
        fix="fetch one beforehand, for instance `hf download bert-base-uncased tokenizer.json tokenizer_config.json "
        f"vocab.txt --local-dir {shlex.quote(str(folder))}`, or copy a folder that save_pretrained wrote",
    )
