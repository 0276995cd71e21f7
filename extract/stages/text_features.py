"""Stage `text_features@D`: runs a frozen text encoder once over every caption and keeps its states.

    selfalign text_features flickr30k

The encoder is in evaluation mode, so that its states are constants of a caption: training on them never runs it. A
caption's states are kept in the cache by its word pieces, and aren't computed again.
"""

from pathlib import Path

from extract.cards.render import text_card
from extract.engine.build import building, installing
from extract.engine.code import code_fingerprint
from extract.engine.maker import ShardJob, Workers, parts_of
from extract.stores.intact import INDEX
from extract.stores.made import made_in, note_made
from extract.stores.recipe import require_same_recipe, write_recipe
from extract.stores.text_features import SCHEMA, TextFeatureStore
from extract.stores.tokens import TokenStore
from extract.text.features import CaptionPieces, TextFeatures
from extract.text.settings import TextFeatureSettings
from manifests.files import sha256, write_json, write_text

CODE = code_fingerprint("extract.stages.text_features")


def run(
    *,
    dataset: str,
    tokens: Path,
    settings: TextFeatureSettings,
    out: Path,
    cache: Path,
    device: str = "cpu",
    batch_size: int = 256,
    workers: Workers | None = None,
    exact: bool = False,
    earlier: Path | None = None,
) -> None:
    """Write the text feature store of a token store to the folder `out`, whole or not at all.

    Parameters
    ----------
    dataset : its name, for the card.
    tokens : a token store with word pieces of the encoder's own tokenizer.
    cache : the machine's cache folder (`extract.engine.cache`): its results aren't computed again, and a killed run
        continues from there.
    device, batch_size : torch device and captions a batch; they change the speed and the last bits.
    workers : which workers encode.
    exact : take from the cache only results of the environment at hand.
    earlier : a store of an older project, of the same tokens, whose states are taken instead of computed ones.

    Raises
    ------
    InputError : an encoder that isn't on this machine or doesn't fit the tokenizer, an unreadable caption, or states
        that float16 can't hold.
    """
    store, size = TokenStore(tokens), settings.captions_per_shard
    work = {
        "settings": settings,
        "tokens": store.path,
        "tokenizer": store.require_tokenizer(),
        "tokens_recipe": store.recipe_hash,
        "cache": cache,
        "batch_size": batch_size,
        "exact": exact,
    }
    maker = TextFeatures(**work, device="cpu" if workers else device)
    if earlier is not None:
        known = TextFeatureStore(earlier)
        known.require_tokens(store)
        require_same_recipe(known.recipe, earlier, maker.recipe, "params.yaml")
        maker.earlier = lambda part, place: known.states(part.first + place)

    def read(start: int, stop: int) -> CaptionPieces:
        return CaptionPieces(start, *store.word_pieces_of(start, stop))

    title = f"text_features {dataset}"
    job = ShardJob(maker, parts_of(store.num_captions, size, read), title, "captions", TextFeatures, work)
    tokens_sha256 = sha256(store.path / "tokens.h5")
    key = {"recipe": maker.recipe, "tokens_sha256": tokens_sha256, "captions_per_shard": size, "code": CODE}
    with building(out, f"text encoding of {dataset}", key, [job], title=title, workers=workers) as built:
        if built is None:
            return
        shards = [done | {"file": f"{number:06d}.h5"} for number, done in enumerate(built[0])]
        index = {
            "schema": SCHEMA,
            "captions": store.num_captions,
            "pieces": sum(shard["pieces"] for shard in shards),
            "dim": maker.encoder.width,
            "tokens_sha256": tokens_sha256,
            "shards": [{name: shard[name] for name in ("file", "count", "sha256")} for shard in shards],
        }
        with installing(out, shards) as folder:
            write_json(folder / INDEX, index)
            write_recipe(folder, maker.recipe)
            write_text(folder / "README.md", text_card(dataset, index, maker.recipe, maker.recipe_hash))
        libraries = ("torch", "transformers", "h5py", "numpy")
        note_made(out, maker.recipe_hash, *libraries, model=settings.model, shards=made_in(shards))
