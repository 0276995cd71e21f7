"""A small data set of drawn scenes whose region features hold each object's attributes, and a model that reads them.
Its hits and matches are known beforehand."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from demo.scenes import stage as scenes
from demo.scenes.describing import WORDS
from demo.scenes.settings import SceneSettings
from extract.stages import tokens
from extract.stores.recipe import write_recipe
from extract.stores.regions import INDEX, Regions, region_index, write_shard
from extract.stores.tokens import TokenStore
from extract.text.settings import TokenSettings
from manifests import manifest
from manifests.files import sha256, write_json
from manifests.grounding import read_grounding
from manifests.tables import Manifest
from train.bag import ConceptBag, ConceptBagSettings
from train.data import RetrievalData

ATTRIBUTES = sorted({value for words in WORDS.values() for value in words.values()})
SIDE = 96
REGIONS = 8


def draw_data_set(data: Path, *, test: int = 8, leave_out: int = 0) -> Path:
    """Draw scenes into `data/scenes` and make `data/demo/{manifest,tokens,regions}`; gives `data/demo`.

    The regions of an image are its objects in order, then boxes of background. The store lacks the last `leave_out`
    images.
    """
    settings = SceneSettings(train=6, val=1, test=test, size=SIDE, max_objects=4)
    scenes.run(settings=settings, out=data / "scenes")
    folder = data / "demo"
    manifest.run(
        images=data / "scenes" / "images",
        captions=data / "scenes" / "captions.json",
        format="karpathy",
        out=folder / "manifest",
    )
    words = TokenSettings(language="scenes", min_count=1)
    tokens.run(manifest=folder / "manifest", settings=words, out=folder / "tokens")
    rows = list(Manifest.open(folder / "manifest").captioned)
    truth = read_grounding(folder / "manifest" / "grounding.jsonl")
    ids = [row.id for row in rows][: len(rows) - leave_out]
    features = np.zeros((len(ids), REGIONS, len(ATTRIBUTES)), np.float16)
    boxes = np.tile(np.array([0, 0, 4, 4], np.float32), (len(ids), REGIONS, 1))
    for image, id in enumerate(ids):
        for object, (box, labels) in enumerate(zip(truth[id].boxes, truth[id].labels, strict=True)):
            boxes[image, object] = box
            features[image, object, [ATTRIBUTES.index(value) for value in labels.values()]] = 1
    write_regions(folder / "regions", ids, features, boxes)
    return folder


def write_regions(folder: Path, ids: list[str], features: np.ndarray, boxes: np.ndarray) -> None:
    """Write a region store of one shard: `features [N, R, D]` and `boxes [N, R, 4]`."""
    recipe_hash = write_recipe(folder, {"detector": {"name": "written by a test"}})
    regions = [Regions(own, box, (SIDE, SIDE)) for own, box in zip(features, boxes, strict=True)]
    write_shard(
        folder / "000000.h5", ids, regions, recipe_hash, dim=features.shape[2], dense=features.shape[1], id_bytes=32
    )
    shard = {"file": "000000.h5", "count": len(ids), "sha256": sha256(folder / "000000.h5")}
    shard |= {"first": ids[0], "last": ids[-1]}
    sizes = {"dim": features.shape[2], "dense": features.shape[1]}
    write_json(folder / INDEX, region_index([shard], **sizes, object_names=None, attribute_names=None))


def retrieval_data(folder: Path, split: str = "test") -> RetrievalData:
    """Open one split of a data set's folder."""
    return RetrievalData(folder / "manifest", folder / "regions", folder / "tokens", split)


def give_codebook(model: nn.Module) -> nn.Module:
    """Give an `AttributeModel` a codebook whose entry k is `ATTRIBUTES[k]`."""
    model.bag = ConceptBag(len(ATTRIBUTES), ConceptBagSettings(num_concepts=len(ATTRIBUTES)))
    model.bag.codebook.data = torch.eye(len(ATTRIBUTES))
    return model


@dataclass
class Encoded:
    """What the encoders give: `train.encoding.Encoding`."""

    pooled: torch.Tensor
    context: torch.Tensor
    locals: torch.Tensor
    mask: torch.Tensor

    def unit(self, kind: str) -> torch.Tensor:
        return self.locals


class AttributeModel(nn.Module):
    """Embeds an image by the attributes of its objects and a caption by those that it names; words know their own.

    `folder` is the data set's. `broken` poisons the embedding of that caption of each batch with NaN.
    """

    def __init__(self, folder: Path, broken: int | None = None):
        super().__init__()
        store = TokenStore(folder / "tokens")
        meaning = {word: value for words in WORDS.values() for word, value in words.items()}
        table = torch.zeros(len(store.vocabulary), len(ATTRIBUTES))
        for number, word in enumerate(store.vocabulary):
            if word in meaning:
                table[number, ATTRIBUTES.index(meaning[word])] = 1
        self.words = nn.Parameter(table)
        self.broken = broken
        self.losses, self.bag, self.alignment = {}, None, None

    def encode_images(self, batch) -> Encoded:
        features = nn.functional.normalize(batch.features.float(), dim=-1)
        pooled = nn.functional.normalize(batch.features.float().sum(1), dim=-1)[:, None]
        return Encoded(pooled, pooled[:, 0, :0], features, batch.mask)

    def encode_captions(self, batch) -> Encoded:
        words = self.words[batch.words] * batch.mask[..., None]
        embedding = nn.functional.normalize(words.sum(1), dim=-1)
        if self.broken is not None:
            embedding[self.broken] = float("nan")
        return Encoded(embedding[:, None], embedding[:, :0], words, batch.mask)
