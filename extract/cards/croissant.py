"""Croissant metadata (mlcommons.org/croissant, version 1.0) of a store: a folder's contents, for programs.

Every shard is a `FileObject` with its sha256; the members of tar shards are `FileSet`s; the record set ``shards`` is
the index. Addresses are file names, so the file describes the folder that it lies in, wherever that is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extract.stores.intact import INDEX
from manifests.files import sha256

FILE = "croissant.json"
_TERMS = (
    *("citeAs", "column", "extract", "field", "fileObject", "fileProperty", "fileSet", "format", "includes"),
    *("isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated"),
    *("replace", "separator", "source", "subField", "transform"),
)
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS},
}
_FORMATS = {".h5": "application/x-hdf5", ".tar": "application/x-tar"}
_MEMBERS = {
    "features": ("*.features.npy", "application/x-npy", "f16 or f32 [R, D]: the features of an image's regions"),
    "boxes": ("*.boxes.npy", "application/x-npy", "f32 [R, 4]: (x1, y1, x2, y2) in pixels of the upright picture"),
    "facts": ("*.json", "application/json", "id, split, size, captions and words of an image"),
}


def croissant(folder: Path, dataset: str, index: Mapping[str, Any], recipe_hash: str) -> dict[str, Any]:
    """The metadata of a store in `folder` as JSON-LD; its index lies there already."""
    about = index.get("about") or {}
    shards = [_file(shard["file"], shard["sha256"]) for shard in index["shards"]]
    packed = [shard["file"] for shard in index["shards"] if shard["file"].endswith(".tar")]
    members = [
        {
            "@type": "cr:FileSet",
            "@id": name,
            "name": name,
            "description": description,
            "containedIn": [{"@id": file} for file in packed],
            "encodingFormat": encoding,
            "includes": pattern,
        }
        for name, (pattern, encoding, description) in _MEMBERS.items()
        if packed
    ]
    fields = {"file": "sc:Text", "count": "sc:Integer", "sha256": "sc:Text"} | ({"split": "sc:Text"} if packed else {})
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": dataset,
        "description": f"Region features of {index['images']} images, {index['dim']} numbers a region, "
        f"made by SelfAlign with recipe {recipe_hash}",
        **{term: about[key] for term, key in (("license", "licence"), ("citeAs", "cite")) if about.get(key)},
        "distribution": [_file(INDEX, sha256(folder / INDEX), "application/json"), *shards, *members],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "shards",
                "name": "shards",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"shards/{name}",
                        "name": name,
                        "dataType": kind,
                        "source": {"fileObject": {"@id": INDEX}, "extract": {"jsonPath": f"$.shards[*].{name}"}},
                    }
                    for name, kind in fields.items()
                ],
            }
        ],
    }


def _file(name: str, digest: str, encoding: str | None = None) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "encodingFormat": encoding or _FORMATS[Path(name).suffix],
        "sha256": digest,
    }
