"""Stage `text_features@D`: runs a frozen text encoder once over every caption and keeps its states.

    selfalign text_features flickr30k

The encoder is in evaluation mode, so that its states are constants of a caption: training on them never runs it. A
shard of captions is the unit of work; finished ones wait in the staging folder, where a killed run continues.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.engine.code import code_fingerprint
from extract.engine.staging import Staging
from extract.stores.intact import INDEX
from extract.stores.recipe import note_made, write_recipe
from extract.stores.text_features import FORMAT, SCHEMA, write_shard
from extract.stores.tokens import TokenStore
from extract.text.encoder import PieceEncoder, encoder_recipe, load_encoder
from extract.text.settings import TextFeatureSettings
from manifests.errors import InputError
from manifests.files import fingerprint, sha256, write_json, write_text
from manifests.progress import progress

_CODE = code_fingerprint("extract.stages.text_features")


def run(
    *,
    dataset: str,
    tokens: Path,
    settings: TextFeatureSettings,
    out: Path,
    staging: Path,
    device: str = "cpu",
    batch_size: int = 256,
) -> None:
    """Write the text feature store of a token store to the folder `out`, whole or not at all.

    Parameters
    ----------
    dataset : its name, for the card.
    tokens : a token store with word pieces of the encoder's own tokenizer.
    staging : folder below which finished shards wait for the others.
    device, batch_size : torch device and captions a batch; they change the speed and the last bits.

    Raises
    ------
    InputError : an encoder that isn't on this machine or doesn't fit the tokenizer, a caption that it can't read, or
        states that float16 can't hold.
    """
    store = TokenStore(tokens)
    tokenizer = store.require_tokenizer()
    encoder = PieceEncoder(load_encoder(settings.model, settings.revision), settings.layer)
    encoder.require_vocabulary(tokenizer["size"], f"encoder {settings.model!r}")
    encoder.eval().requires_grad_(False).to(device)
    recipe = {
        "format": FORMAT,
        "schema": SCHEMA,
        "encoder": encoder_recipe(settings.model, settings.revision),
        "layer": settings.layer,
        "pieces": "those of words",
        "tokenizer": tokenizer,
        "tokens": store.recipe_hash,
    }
    tokens_sha256, recipe_hash = sha256(store.path / "tokens.h5"), fingerprint(recipe)
    key = {
        "recipe": recipe,
        "tokens_sha256": tokens_sha256,
        "captions_per_shard": settings.captions_per_shard,
        "code": _CODE,
        # They move the last bits.
        "batch_size": batch_size,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    staged, shards = Staging(staging, key), []
    with staged.alone(out, f"text encoding of {dataset}") as made:
        if made:
            return
        with progress(what=f"text features {dataset}", unit="captions", total=store.num_captions) as bar:
            for number, first in enumerate(range(0, store.num_captions, settings.captions_per_shard)):
                captions = range(first, min(first + settings.captions_per_shard, store.num_captions))
                path = staged.folder / f"{number:06d}.h5"
                done = staged.finished(path)
                if not done:
                    states: list[np.ndarray] = [np.empty(0)] * len(captions)
                    for caption, own in _encode(encoder, store, captions, device, batch_size):
                        states[caption - first] = own
                        bar.update()
                    write_shard(path, states, encoder.width, recipe_hash)
                    done = staged.finish(path, {"count": len(captions), "pieces": sum(map(len, states))})
                else:
                    bar.update(len(captions))
                shards.append(done)
        index = {
            "schema": SCHEMA,
            "captions": store.num_captions,
            "pieces": sum(shard["pieces"] for shard in shards),
            "dim": encoder.width,
            "tokens_sha256": tokens_sha256,
            "shards": [{name: shard[name] for name in ("file", "count", "sha256")} for shard in shards],
        }
        with staged.install(out, shards) as folder:
            write_json(folder / INDEX, index)
            write_recipe(folder, recipe)
            write_text(folder / "README.md", _card(dataset, index, recipe, recipe_hash))
    note_made(out, recipe_hash, "torch", "transformers", "h5py", "numpy", model=settings.model, device=device)


@torch.inference_mode()
def _encode(
    encoder: PieceEncoder, store: TokenStore, captions: range, device: str, batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Captions with their states f16 ``[N, W]``, in the order of their lengths."""
    lengths = [len(store.pieces(caption).ids) for caption in captions]
    order = [captions[place] for place in np.argsort(lengths, kind="stable").tolist()]
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        pieces = [torch.tensor(store.pieces(caption).ids, dtype=torch.int64) for caption in batch]
        mask = torch.arange(len(pieces[-1])) < torch.tensor([len(own) for own in pieces])[:, None]
        padded = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
        found = encoder(padded.to(device), mask.to(device)).to(torch.float16).cpu().numpy()
        for caption, states in zip(batch, found, strict=True):
            places, _ = store.word_pieces(caption)
            states = states[: len(places)][places]
            if not np.isfinite(states).all():
                raise InputError(
                    f"the states of caption {caption}, {store.text(caption)!r}, are NaN or beyond float16",
                    where=f"layer {encoder.layer if encoder.layer is not None else -1} of the encoder",
                    fix="choose another layer (-1, the last, is usual) or another encoder",
                )
            yield caption, states


_CARD = """# Text features: {dataset}

{captions:,} captions, {pieces:,} word pieces of words, {dim} numbers a piece (float16): the states of a frozen encoder.

| what | |
|---|---|
| encoder | `{encoder}`, layer {layer} |
| weights | {weights} |
| tokenizer | `{tokenizer}`, {size:,} entries |
| kept | pieces that belong to a word; the encoder saw special tokens and punctuation too |
| recipe | `{recipe_hash}` (`recipe.json` has it whole) |
| shards | {shards}, captions in the order of the token store (`index.json` has counts and sha256) |

The states of the first caption with h5py alone:

```python
import h5py
shard = h5py.File("000000.h5", locking=False)
states = shard["states"][slice(*shard["offsets"][0:2])]
```

or with SelfAlign: `extract.stores.text_features.TextFeatureStore(".").states(0)`. Which piece and which word a row is:
`TokenStore("../tokens").word_pieces(0)`.
"""


def _card(dataset: str, index: dict[str, Any], recipe: dict[str, Any], recipe_hash: str) -> str:
    """README.md for the person who receives the folder."""
    encoder = recipe["encoder"]
    return _CARD.format(
        dataset=dataset,
        captions=index["captions"],
        pieces=index["pieces"],
        dim=index["dim"],
        encoder=encoder["name"],
        layer=recipe["layer"],
        weights=", ".join(f"{name} sha256 `{digest}`" for name, digest in encoder["weights_sha256"].items()),
        tokenizer=recipe["tokenizer"]["class"],
        size=recipe["tokenizer"]["size"],
        recipe_hash=recipe_hash,
        shards=len(index["shards"]),
    )
