"""Caption teachers of Hugging Face: sentence-transformers models, or any text encoder with its states' mean.

The package sentence-transformers isn't needed: a folder of its kind says in ``modules.json`` which encoder, pooling and
normalisation it is, and that is done here. Models with further modules (a dense layer, say) are refused.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from extract.hub import Kind, find_model, model_recipe
from extract.teachers import TEACHERS
from extract.teachers.teacher import Inputs, Teacher
from extract.text.encoder import PieceEncoder, load_encoder
from extract.text.pieces import PieceTokenizer
from manifests.errors import InputError
from manifests.typed import Settings

_USUAL = "sentence-transformers/all-MiniLM-L6-v2"
KIND = Kind("caption teacher", _USUAL, "--include '*.json' --include '*.safetensors'")
_MODULES = "modules.json"
_DIVIDING, _PUNCTUATION = re.compile(r"[-/]"), re.compile(r"""[^\w\s]""")
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True, slots=True)
class Made:
    """The parts of a teacher: the encoder's folder, and the steps before and after it."""

    encoder: Path
    pooling: str = "mean"
    most_pieces: int | None = None
    lower: bool = False


def plain_text(caption: str) -> str:
    """A caption in lower case, without punctuation."""
    return " ".join(_PUNCTUATION.sub("", _DIVIDING.sub(" ", caption.lower())).split())


class SentenceSettings(Settings):
    """A sentence-transformers model, or a text encoder."""

    name: Literal["sentences"] = "sentences"
    model: str = Field(min_length=1, description="folder or hub name; nothing is fetched")
    revision: str | None = Field(None, description="commit, tag or branch of a hub name")
    pooling: Literal["mean", "cls"] | None = Field(
        None, description="of the states; by default that of a sentence-transformers model, else mean"
    )
    plain: bool = Field(False, description="captions are read in lower case, without punctuation, as CUSA does it")


@TEACHERS.add("sentences")
class SentenceTeacher(Teacher):
    """Pooled states of a text encoder.

    Raises
    ------
    InputError : a model that isn't on this machine, doesn't load, or is put together in another way.
    """

    Settings = SentenceSettings
    reads = "captions"

    def __init__(self, settings: SentenceSettings, inputs: Inputs):
        self.device, self.batch_size, self._plain = inputs.device, inputs.batch_size, settings.plain
        self.failures = {}
        made = read_modules(settings)
        self.pooling = settings.pooling or made.pooling
        self._encoder = PieceEncoder(load_encoder(str(made.encoder), kind=KIND))
        bounds = [bound for bound in (made.most_pieces, self._encoder.most_pieces) if bound]
        self._tokenizer = PieceTokenizer(made.encoder, min(bounds) if bounds else None)
        self._encoder.require_vocabulary(self._tokenizer.recipe["size"], f"{KIND.role} {settings.model!r}")
        self._encoder.eval().requires_grad_(False).to(self.device)
        self._lower = made.lower
        self.dim = self._encoder.width
        self.recipe = {
            **model_recipe(settings.model, made.encoder),
            "pooling": self.pooling,
            "lower_case": made.lower,
            "tokenizer": self._tokenizer.recipe,
            **({"plain": True} if settings.plain else {}),
        }

    @classmethod
    def require(cls, settings: SentenceSettings) -> None:
        read_modules(settings)

    def embed(self, items: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Batches in the order of their lengths."""
        items = [plain_text(text) for text in items] if self._plain else items
        order = sorted(range(len(items)), key=lambda place: len(items[place]))
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            yield batch, self._pooled([items[place] for place in batch]).float().cpu().numpy()

    @torch.inference_mode()
    def _pooled(self, batch: list[str]) -> Tensor:
        """``[B, W]``."""
        texts = [text.lower() for text in batch] if self._lower else batch
        found = self._tokenizer.split(texts, [np.array([[0, len(text)]]) for text in texts])
        ids = [torch.from_numpy(pieces.ids.astype(np.int64)) for pieces in found]
        lengths = torch.tensor([len(own) for own in ids], device=self.device)
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self.device)
        mask = torch.arange(padded.shape[1], device=self.device) < lengths[:, None]
        states = self._encoder(padded, mask)
        if self.pooling == "cls":
            return states[:, 0]
        return (states * mask[..., None]).sum(1) / lengths[:, None]


def read_modules(settings: SentenceSettings) -> Made:
    """How the teacher of that name is put together. Raises InputError as `SentenceTeacher` does."""
    folder = find_model(settings.model, settings.revision, KIND, needs=())
    if not (folder / _MODULES).is_file():
        return Made(find_model(settings.model, settings.revision, KIND))
    where = f"{KIND.role} {settings.model!r}, {folder / _MODULES}"
    modules = {module["type"].rpartition(".")[2]: folder / module["path"] for module in _json(folder / _MODULES, where)}
    unknown = [name for name in modules if name not in ("Transformer", "Pooling", "Normalize")]
    if unknown or "Transformer" not in modules:
        raise InputError(
            f"it is made of {', '.join(modules)}: only an encoder, pooling and normalisation are known here",
            where=where,
            fix=f"choose a model without these parts, such as {_USUAL}",
        )
    pooling = "mean"
    if "Pooling" in modules:
        config = _json(modules["Pooling"] / "config.json", where)
        chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        mode = config.get("pooling_mode") or (chosen[0] if len(chosen) == 1 else None)
        pooling = _POOLINGS.get(mode, mode)
        if pooling not in _POOLINGS.values() and settings.pooling is None:
            raise InputError(
                f"its pooling is {' and '.join(chosen) or mode}", where=where, fix="set captions.pooling to mean or cls"
            )
    encoder = modules["Transformer"]
    facts = encoder / "sentence_bert_config.json"
    config = _json(facts, where) if facts.is_file() else {}
    find_model(str(encoder), None, KIND)
    return Made(encoder, pooling, config.get("max_seq_length"), bool(config.get("do_lower_case")))


def _json(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "fetch the model's folder again, whole"
        raise InputError(f"{path.name} can't be read ({error})", where=where, fix=fix) from error
