"""Make `formats.tar.xz`, one of each of the formats that are written now, and `values.json`: what is in them.

    python -m tests.data.formats.make

The values are read by others' readers (h5py, pyarrow, numpy, safetensors): tests/data/README.md.
"""

import io
import json
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file

from tests.data.older.make import plain
from tests.fuzz.examples import make

HERE = Path(__file__).parent
TINY, RUN = "data/tiny", "runs/aligned"
KEPT = (
    *("pictures/manifest", "pictures/regions"),
    *(f"{TINY}/{name}" for name in ("manifest", "regions", "tokens", "text_features", "teachers", "pack")),
    *(f"{RUN}/{name}" for name in ("model", "epochs.csv", "evaluation", "metrics.json", "correspondence.json")),
    *("ensembles/both", "indexes/exact"),
)


def main() -> None:
    with TemporaryDirectory() as name:
        root = make(Path(name))
        with tarfile.open(HERE / "formats.tar.xz", "w:xz") as tar:
            for kept in KEPT:
                tar.add(root / kept, kept, filter=plain)
        lines = (f"{json.dumps(key)}: {json.dumps(own, ensure_ascii=False)}" for key, own in values(root).items())
        text = "{\n" + ",\n".join(lines) + "\n}"
        (HERE / "values.json").write_text(text + "\n", encoding="utf-8")


def values(root: Path) -> dict[str, Any]:
    """Of each format some numbers and texts, by its name."""
    found: dict[str, Any] = {}
    with pa.memory_map(str(root / TINY / "manifest/images.arrow")) as images:
        rows = pa.ipc.open_file(images).read_all().to_pylist()
    with pa.memory_map(str(root / TINY / "manifest/captions.arrow")) as captions:
        texts = pa.ipc.open_file(captions).read_all().to_pylist()
    found["manifest"] = {
        "ids": [row["id"] for row in rows],
        "splits": [row["split"] for row in rows],
        "last": {**rows[-1], "sha256": rows[-1]["sha256"].hex()},
        "captions": [row["caption"] for row in texts],
        "caption_ids": [row["caption_id"] for row in texts],
    }
    with h5py.File(root / "pictures/regions/train/000000.h5") as shard:
        found["regions"] = {
            "ids": [raw.decode() for raw in shard["image_id"][:].tolist()],
            "sizes": shard["image_size"][:].tolist(),
            "counts": shard["num_boxes"][:].tolist(),
            "features": total(shard["features"]),
            "feature": shard["features"][0, 1, :6].tolist(),
            "boxes": shard["boxes"][0].tolist(),
            "objects": shard["objects_id"][0].tolist(),
            "confidences": shard["objects_conf"][0].tolist(),
        }
    with h5py.File(root / TINY / "tokens/tokens.h5") as store:
        words, pieces, characters = (slice(*store[f"{of}_offsets"][:2]) for of in ("word", "piece", "text"))
        found["tokens"] = {name: store[name][words].tolist() for name in ("words", "spans", "pos")}
        found["tokens"] |= {name: store[name][pieces].tolist() for name in ("piece_ids", "piece_words")}
        found["tokens"] |= {
            "text": bytes(store["text"][characters].tolist()).decode(),
            "captions": len(store["caption_image"]),
        }
    found["vocabulary"] = json.loads((root / TINY / "tokens/vocabulary.json").read_text())
    with h5py.File(root / TINY / "text_features/000001.h5") as shard:
        found["text_features"] = {"states": total(shard["states"]), "first": shard["states"][0].tolist()}
    with h5py.File(root / TINY / "teachers/000000.h5") as shard:
        found["teachers"] = shard["embeddings"][:].tolist()
    with tarfile.open(root / TINY / "pack/tiny-test-000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    first = next(iter(members)).partition(".")[0]
    array = {name: np.load(io.BytesIO(members[f"{first}.{name}.npy"])) for name in ("features", "boxes")}
    facts = json.loads(members[f"{first}.json"])
    found["pack"] = {"facts": facts, "boxes": array["boxes"].tolist(), "features": total(array["features"])}
    weights = load_file(root / RUN / "model/model.safetensors")
    found["run"] = {name: total(weight) for name, weight in sorted(weights.items())}
    found["evaluation"] = {
        name: np.load(root / RUN / f"evaluation/{name}.npy").tolist() for name in ("pooled", "context", "captions")
    }
    with np.load(root / "ensembles/both/ranks.npz") as ranks:
        found["ensemble"] = {name: ranks[name].tolist() for name in sorted(ranks.files)}
    found["metrics"] = json.loads((root / RUN / "metrics.json").read_text())
    pooled, texts = np.load(root / "indexes/exact/pooled.npy"), np.load(root / "indexes/exact/captions.npy")
    context = np.load(root / "indexes/exact/context.npy")
    dims = pooled.shape[2]
    scores = np.einsum("ikp,p->ik", pooled, texts[0, :dims]).max(1) + context @ texts[0, dims:]
    best = np.argsort(-scores, kind="stable")[:3]
    found["index"] = {"rows": best.tolist(), "scores": scores[best].tolist()}
    return found


def total(array: Any) -> float:
    """The sum of an array's numbers, in float64."""
    return float(np.asarray(array, np.float64).sum())


if __name__ == "__main__":
    main()
