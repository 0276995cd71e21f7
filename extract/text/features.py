"""The shards of a text feature store: an encoder's states of captions, from their word pieces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.engine.cache import Cache
from extract.engine.code import code_fingerprint
from extract.engine.device import environment
from extract.engine.maker import Advance, ItemMaker
from extract.engine.tolerance import difference_beyond
from extract.stores.hdf5 import MappedHDF5
from extract.stores.text_features import FORMAT, SCHEMA, write_shard
from extract.stores.tokens import TokenStore
from extract.text.encoder import PieceEncoder, encoder_recipe, load_encoder
from extract.text.settings import TextFeatureSettings
from manifests.errors import InputError
from manifests.files import fingerprint

CODE = code_fingerprint("extract.text.features")


@dataclass(frozen=True)
class CaptionPieces:
    """The word pieces of C captions: ids i32 ``[sum]``, a mask ``[sum]`` of the pieces that belong to a word, and the
    captions' offsets, i64 ``[C + 1]``. `first` is the number of the first caption."""

    first: int
    ids: np.ndarray
    kept: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and kept of the caption at a place."""
        own = slice(*self.offsets[place : place + 2])
        return self.ids[own], self.kept[own]


class TextFeatures(ItemMaker[CaptionPieces, np.ndarray]):
    """Makes shards of states; a caption's result is kept by its word pieces, which are all that the encoder sees of it.

    Parameters
    ----------
    tokens : the token store's folder, opened for messages alone.
    tokenizer, tokens_recipe : the token store's facts of its tokenizer, and its recipe's hash.
    cache : the machine's cache folder.
    device, batch_size : torch device and captions a batch; they change the speed and the last bits.
    exact : take only results of this `environment`.

    Raises
    ------
    InputError : an encoder that isn't on this machine or doesn't fit the tokenizer.
    """

    def __init__(
        self,
        *,
        settings: TextFeatureSettings,
        tokens: Path,
        tokenizer: Mapping[str, Any],
        tokens_recipe: str,
        cache: Path,
        device: str,
        batch_size: int,
        exact: bool = False,
    ):
        self.tokens, self.device, self.batch_size = tokens, device, batch_size
        self.encoder = PieceEncoder(load_encoder(settings.model, settings.revision), settings.layer)
        self.encoder.require_vocabulary(tokenizer["size"], f"encoder {settings.model!r}")
        self.encoder.eval().requires_grad_(False).to(device)
        encoder = encoder_recipe(settings.model, settings.revision)
        self.recipe = {
            "format": FORMAT,
            "schema": SCHEMA,
            "encoder": encoder,
            "layer": settings.layer,
            "pieces": "those of words",
            "tokenizer": tokenizer,
            "tokens": tokens_recipe,
        }
        self.recipe_hash = fingerprint(self.recipe)
        # An encoder is its weights, whatever its folder is called, and a layer the one that -1 means.
        decides = {"encoder": {key: value for key, value in encoder.items() if key != "name"}}
        decides |= {"schema": SCHEMA, "layer": self.encoder.layer}
        self.key = {"recipe": self.recipe, "code": CODE}
        of, own = f"encoder {settings.model}", self.environment if exact else None
        self.finished = Cache(cache, "text_features", decides, CODE, of=of, exact=own)

    @property
    def environment(self) -> dict[str, Any]:
        """Facts that may move the last bits."""
        return environment(self.device, self.batch_size, "transformers")

    def content(self, part: CaptionPieces) -> dict[str, Any]:
        arrays = (part.ids, part.kept, part.offsets - part.offsets[0])
        return {"recipe": self.recipe_hash, "pieces": [sha256(array.tobytes()).hexdigest() for array in arrays]}

    def digests(self, part: CaptionPieces) -> list[str]:
        pieces = map(part.of, range(len(part)))
        return [sha256(ids.tobytes() + kept.tobytes()).hexdigest() for ids, kept in pieces]

    def read(self, shard: MappedHDF5, row: int) -> np.ndarray:
        return shard["states"][slice(*shard["offsets"][row : row + 2])]

    def difference(self, known: np.ndarray, again: np.ndarray) -> str | None:
        largest = difference_beyond(known, again, features=True)
        return None if largest is None else f"states differ by {largest:.3g}"

    def name(self, part: CaptionPieces, place: int) -> str:
        return f"caption {part.first + place}"

    def save(self, path: Path, part: CaptionPieces, results: Mapping[int, np.ndarray]) -> dict[str, Any]:
        none = np.empty((0, self.encoder.width), np.float16)
        states = [results.get(place, none) for place in range(len(part))]
        write_shard(path, states, self.encoder.width, self.recipe_hash)
        pieces = sum(map(len, states))
        return {
            "count": len(part),
            "pieces": pieces,
            "items": [digest if place in results else None for place, digest in enumerate(self.digests(part))],
            "environment": self.environment,
        }

    @torch.inference_mode()
    def compute(self, part: CaptionPieces, places: Sequence[int], advance: Advance) -> dict[int, np.ndarray]:
        """States f16 ``[N, W]`` of captions, in batches in the order of their lengths."""
        found: dict[int, np.ndarray] = {}
        lengths = np.diff(part.offsets)[np.asarray(places, np.int64)]
        order = [places[place] for place in np.argsort(lengths, kind="stable").tolist()]
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            pieces = [torch.from_numpy(part.of(place)[0].astype(np.int64)) for place in batch]
            mask = torch.arange(len(pieces[-1])) < torch.tensor([len(own) for own in pieces])[:, None]
            padded = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
            with self.timed("compute"):
                states = self.encoder(padded.to(self.device), mask.to(self.device)).to(torch.float16).cpu().numpy()
            for place, own in zip(batch, states, strict=True):
                kept = part.of(place)[1]
                found[place] = own[: len(kept)][kept]
                if not np.isfinite(found[place]).all():
                    raise self._not_finite(part.first + place)
            advance(len(batch))
        return found

    def _not_finite(self, caption: int) -> InputError:
        return InputError(
            f"the states of caption {caption}, {TokenStore(self.tokens).text(caption)!r}, are NaN or beyond float16",
            where=f"layer {self.encoder.layer if self.encoder.layer is not None else -1} of the encoder",
            fix="choose another layer (-1, the last, is usual) or another encoder",
        )
