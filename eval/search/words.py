"""Captions that are in no data set, read by the very stages that read those which a run was trained on.

They become the captions of a temporary data set: words, vocabulary, word pieces and an encoder's states are the run's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from extract.stages import text_features, tokens
from extract.stores.recipe import require_same_recipe
from extract.stores.regions import RegionStore
from extract.stores.tokens import TokenStore
from extract.text.settings import TextFeatureSettings, TokenSettings
from extract.text.vocabulary import UNKNOWN
from manifests.errors import InputError
from manifests.files import sha256
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest
from train.data import RetrievalData


@dataclass(frozen=True)
class RunWords:
    """How a run reads captions.

    tokens : settings of the word stage of the run's data set.
    pieces : whether the run reads word pieces.
    encoder : settings of its text features, if it reads those.
    vocabulary : the `vocabulary.json` that it was trained with.
    recipe : what the run's record says of its data: `{"tokens": ..., "text_features": ...}` and more.
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


@contextmanager
def captioned(
    rows: Sequence[CaptionedImage], words: RunWords, regions: RegionStore, *, device: str = "cpu", batch_size: int = 256
) -> Iterator[RetrievalData]:
    """A data set of `rows`, whose captions are read as the run reads them, for as long as the block lasts.

    Parameters
    ----------
    rows : said to be of one split; their regions are in the stores `regions`.
    device, batch_size : of a text encoder.

    Raises
    ------
    InputError : a caption without a word; a language, tokenizer or encoder that isn't there or isn't the run's.
    """
    with TemporaryDirectory(prefix="selfalign-") as temporary:
        folder = Path(temporary)
        listed, states = folder / "manifest", folder / "text_features"
        write_manifest(listed, rows)
        settings = words.tokens.model_copy(update={"vocabulary": words.vocabulary})
        with _quietly():
            tokens.run(manifest=listed, settings=settings, out=folder / "tokens")
        _require_same(TokenStore(folder / "tokens").recipe, words.recipe["tokens"], "min_count")
        if words.encoder:
            with _quietly():
                text_features.run(
                    dataset="captions",
                    tokens=folder / "tokens",
                    settings=words.encoder,
                    out=states,
                    cache=folder / "cache",
                    device=device,
                    batch_size=batch_size,
                )
            made = RetrievalData(
                listed, regions, folder / "tokens", rows[0].split, pieces=words.pieces, text_features=states
            )
            _require_same(made.text_store.recipe, words.recipe["text_features"], "tokens")
        else:
            made = RetrievalData(listed, regions, folder / "tokens", rows[0].split, pieces=words.pieces)
        yield made


@contextmanager
def _quietly() -> Iterator[None]:
    """Without bars and figures of what takes no time."""
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        yield


def unknown_words(data: RetrievalData) -> list[str]:
    """The words of the first caption that the vocabulary doesn't have; word pieces have them all."""
    if data.pieces:
        return []
    store = data.token_store
    pairs = zip(store.word_texts(0), store.words(0).tolist(), strict=True)
    return [text for text, number in pairs if number == UNKNOWN]


def _require_same(ours: dict[str, Any], theirs: dict[str, Any], but: str) -> None:
    """The recipes of a query and of the run's own captions; one key, on which no word depends, may differ."""
    require_same_recipe(
        {**ours, but: None}, "the captions at hand", {**theirs, but: None}, "the captions that the run was trained on"
    )
