"""The smallest sound example of every kind of file, made by the project's own writers."""

import base64
import csv
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from eval import ensemble, evaluate
from eval.search import index
from eval.search.words import RunWords
from eval.settings import EvaluationSettings
from eval.study.table import COLUMNS, write_table
from extract.cards.card import write_card
from extract.exchange import manifest as imported_manifest
from extract.settings import ImportSettings, PackSettings
from extract.stages import pack, regions, teachers, text_features, tokens
from extract.stages.import_regions import prepare
from extract.stores.regions import FAILURES
from extract.teachers.settings import TeacherSettings
from extract.text.settings import TextFeatureSettings, TokenSettings
from extract.text.words import load_language
from manifests import manifest
from manifests.files import fingerprint, sha256, write_json, write_text
from manifests.grounding import Grounding, Phrase, write_grounding
from manifests.schema import CaptionedImage
from manifests.tables import Manifest, images_sha256, write_manifest
from tests.encoders import write_encoder
from tests.extract.exchange_files import DataSet, write_data_set
from tests.extract.region_files import encoded, large_png, quick_settings, scene
from train.checkpoint import data_recipe, read_record, save_model
from train.data import RetrievalData
from train.model import build_model
from train.settings import RunSettings
from train.state import Progress, StateFolder

SETTINGS = {
    "dataset": "tiny",
    "epochs": 1,
    "batch_size": 10,
    "base": {"name": "vsrn", "dim": 8, "graph_layers": 1},
    "text": {"reads": "tokens", "word_dim": 4},
    "losses": {"triplet": {}, "lca": {"num_concepts": 4}, "cra": {"num_negatives": 4}},
}
RUNS = {
    "plain": RunSettings(**{**SETTINGS, "losses": {"triplet": {}}}),
    "aligned": RunSettings(**SETTINGS),
    "cached": RunSettings(**{**SETTINGS, "text": {"reads": "text_features"}}),
}
WORDS = TokenSettings(language="blank_en", min_count=1)
TEACHERS = {"images": {"name": "regions-mean"}, "captions": {"name": "lsa", "dim": 4}}
EVALUATION = EvaluationSettings(split="test")
CAPTIONS = [("train", "a ring"), ("train", "a star"), ("val", "a disc"), ("test", "two rings, and “é”")]


LANGUAGE = load_language(WORDS.language)


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder, in memory where there is room: a try copies a hundred links, and removes them."""
    memory = Path("/dev/shm")
    there = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**28
    with TemporaryDirectory(prefix="fuzz-", dir=memory if there else None, ignore_cleanup_errors=True) as name:
        yield Path(name)


def make(root: Path) -> Path:
    """Write all examples into `root`, and give it back."""
    torch.set_num_threads(1)
    for counts, name in (((4,) * 10, "tiny"), ((3, 1, 2, 4, 5, 2, 2, 1, 3, 4), "ragged")):
        _data_set(root / "data" / name, counts)
    _pictures(root / "pictures")
    _exchanged(root)
    _weights(root / "weights")
    _runs(root)
    _beside(root)
    return root


def coco(id: str) -> tuple[int, int]:
    """COCO's ids of an image's two captions."""
    return 10 * int(id), 10 * int(id) + 1


def _older(row: CaptionedImage) -> str:
    """A row of an older project's manifest."""
    names = ("id", "path", "sha256", "width", "height", "split", "captions")
    return json.dumps({name: getattr(row, name) for name in names}) + "\n"


def _data_set(folder: Path, counts: tuple[int, ...]) -> None:
    """Every store that a data set can have; the words of “tiny” are word pieces too."""
    data = write_data_set(folder, counts=counts)
    rows = [
        replace(row, sha256=fingerprint(row.id), captions=row.captions[:2], caption_ids=coco(row.id))
        for row in data.rows
    ]
    write_manifest(data.manifest, rows)
    phrases = ((Phrase(0, 7, 0, "phrase"),), (Phrase(0, 7, 1, "phrase"),))
    boxes, labels = ((1.0, 2.0, 90.0, 80.0), (5.0, 5.0, 30.0, 60.0)), ({"shape": "ring"}, {})
    write_grounding(data.manifest / "grounding.jsonl", [Grounding(r.id, boxes, labels, phrases) for r in rows])
    write_text(folder / "older" / "manifest.jsonl", "".join(map(_older, rows)))
    ids = [{"caption_ids": list(row.caption_ids), "image_id": row.id} for row in rows]
    write_text(folder / "older" / "coco_ids.jsonl", "".join(json.dumps(row) + "\n" for row in ids))
    write_text(folder / "regions" / FAILURES, "")
    write_card(folder / "regions")
    encoder = write_encoder(folder / "encoder", width=8)
    paths = {"dataset": folder.name, "manifest": data.manifest, "regions": folder / "regions"}
    words = WORDS.model_copy(update={"tokenizer": encoder, "max_pieces": 32})
    tokens.run(manifest=data.manifest, settings=words, out=folder / "tokens")
    text_features.run(
        dataset=folder.name,
        tokens=folder / "tokens",
        settings=TextFeatureSettings(model=str(encoder), captions_per_shard=12),
        out=folder / "text_features",
        cache=folder / "cache",
    )
    settings = TeacherSettings(**TEACHERS, items_per_shard=6)
    work = {"cache": folder / "cache", "staging": folder / "staging"}
    teachers.run(**paths, images=folder, settings=settings, out=folder / "teachers", **work)
    pack.run(**paths, tokens=folder / "tokens", settings=PackSettings(images_per_shard=3), out=folder / "pack")


def _pictures(folder: Path) -> None:
    """One picture in each format, and captions files of every kind beside them."""
    (folder / "images").mkdir(parents=True)
    picture = Image.fromarray(scene(0)[0]).resize((40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, dict] = {"jpg": {"exif": exif, "quality": 60}, "gif": {"save_all": True}, "tif": {"exif": exif}}
    names = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "bmp": "BMP"}
    for suffix, format in names.items():
        (folder / "images" / f"{suffix}.{suffix}").write_bytes(encoded(picture, format, **options.get(suffix, {})))
    (folder / "images" / "palette.png").write_bytes(encoded(picture.convert("P"), "PNG"))
    (folder / "images" / "bits.png").write_bytes(large_png(64, 8))
    rows = [
        {"image": path.name, "split": split, "captions": [text, f"{text} too"]}
        for path, (split, text) in zip(sorted((folder / "images").iterdir()), CAPTIONS * 2, strict=True)
    ]
    given = [{"image": row["image"], "boxes": [[0, 0, 9, 5], [1, 1, 4, 8]], "labels": ["a", "b"]} for row in rows]
    write_text(folder / "boxes.jsonl", "".join(json.dumps(row) + "\n" for row in given))
    write_json(folder / "boxes.json", given)
    boxed_rows = [row | own for row, own in zip(rows, given, strict=True)]
    write_text(folder / "captions.jsonl", "".join(json.dumps(row) + "\n" for row in boxed_rows))
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        with open(folder / f"captions.{suffix}", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, delimiter=delimiter)
            boxed = ["boxes", "labels"] if suffix == "csv" else []
            table.writerow(["image", "caption", "split", *boxed])
            table.writerows(
                [row["image"], text, row["split"], *(json.dumps(row[key]) for key in boxed)]
                for row in boxed_rows
                for text in row["captions"]
            )
    objects = [{"box": [1, 2, 30, 20], "shape": "ring"}]
    phrases = [{"start": 0, "end": 1, "object": 0, "kind": "shape"}]
    images = [
        {
            "filename": row["image"],
            "split": row["split"],
            "cocoid": number,
            "objects": objects,
            "sentences": [
                {"raw": text, "sentid": 10 * number + k, "phrases": phrases} for k, text in enumerate(row["captions"])
            ],
        }
        for number, row in enumerate(rows)
    ]
    write_json(folder / "captions.json", {"images": images})
    _captions_of_others(folder / "others", rows)
    listing = {"images": folder / "images", "captions": folder / "captions.csv"}
    given = folder / "boxes.jsonl"
    manifest.run(**listing, boxes=given, format="folder", duplicates="allow", out=folder / "manifest")
    regions.run(
        dataset="pictures",
        manifest=folder / "manifest",
        images=folder / "images",
        settings=quick_settings(unreadable="skip"),
        out=folder / "regions",
        cache=folder / "cache",
    )


def _brought(folder: Path, data: DataSet, captions: Path) -> None:
    """“tiny” in the formats that are only read."""
    for format in ("coco-detections", "cocobu/cocobu_att", "cocobu/cocobu_box", "mmf-npy", "openvqa", "vinvl-alone"):
        (folder / format).mkdir(parents=True)
    for format in ("coco-detections", "cocobu", "mmf-npy", "openvqa", "vinvl-alone"):
        shutil.copy(captions, folder / format / "captions.json")
    sizes, rows, hw = [], [], []
    with h5py.File(folder / "coco-detections" / "coco_detections.hdf5", "w") as file:
        for id, found in data.regions().items():
            features, boxes = found.features.astype(np.float32), found.boxes
            width, height = found.image_size
            sizes.append({"id": int(id), "width": width, "height": height})
            file[f"{id}_features"], file[f"{id}_boxes"] = features, boxes
            np.savez(folder / "cocobu" / "cocobu_att" / f"{id}.npz", feat=features)
            np.save(folder / "cocobu" / "cocobu_box" / f"{id}.npy", boxes)
            info = {"bbox": boxes, "image_width": width, "image_height": height}
            np.save(folder / "mmf-npy" / f"{id}.npy", features)
            np.save(folder / "mmf-npy" / f"{id}_info.npy", info, allow_pickle=True)
            facts = {"bbox": boxes, "num_bbox": len(boxes), "image_w": width, "image_h": height}
            np.savez(folder / "openvqa" / f"{id}.jpg.npz", x=features.T, **facts)
            objects = [
                {"rect": box, "class": "a", "conf": 0.5, "feature": base64.b64encode(own).decode()}
                for box, own in zip(boxes.tolist(), features, strict=True)
            ]
            rows.append(f"{id}\t{json.dumps({'objects': objects})}\n")
            hw.append(f'{id}\t[{{"height": {height}, "width": {width}}}]\n')
    for format in ("coco-detections", "cocobu"):
        write_json(folder / format / "sizes.json", {"images": sizes})
    write_text(folder / "vinvl-alone" / "predictions.tsv", "".join(rows))
    write_text(folder / "vinvl-alone" / "hw.tsv", "".join(hw))


def _captions_of_others(folder: Path, rows: list[dict]) -> None:
    """The captions as COCO, Flickr, BLIP, Oscar, img2dataset and a folder of texts have them."""
    captioned = [(number, row["image"], text) for number, row in enumerate(rows) for text in row["captions"]]
    images = [{"id": number, "file_name": row["image"]} for number, row in enumerate(rows)]
    annotations = [{"id": k, "image_id": number, "caption": text} for k, (number, _, text) in enumerate(captioned)]
    (folder / "shards").mkdir(parents=True)
    (folder / "beside").mkdir()
    write_json(folder / "coco.json", {"images": images, "annotations": annotations})
    write_json(folder / "listed.json", [{"image_id": name, "caption": text} for _, name, text in captioned])
    write_json(folder / "mapping.json", captions := {row["image"]: row["captions"] for row in rows})
    with zipfile.ZipFile(folder / "train_captions.pt", "w") as archive:
        archive.writestr("train_captions/data.pkl", pickle.dumps(captions, 2))
    write_text(folder / "flickr.token", "".join(f"{name}#{k}\t{text}\n" for k, (_, name, text) in enumerate(captioned)))
    write_text(
        folder / "bars.csv", "image_name| comment\n" + "".join(f"{name}| {text}\n" for _, name, text in captioned)
    )
    with tarfile.open(folder / "shards" / "00000.tar", "w") as shard:
        for number, row in enumerate(rows[:3]):
            write_text(folder / "beside" / f"{number}.txt", "\n".join(row["captions"]))
            (folder / "beside" / f"{number}.jpg").write_bytes(b"")
            for suffix, text in (("jpg", ""), ("txt", row["captions"][0]), ("json", '{"caption": "A ring."}')):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content := text.encode())
                shard.addfile(member, io.BytesIO(content))


def _exchanged(root: Path) -> None:
    """“tiny” in every format of other people, with captions.json beside those that have none."""
    data = write_data_set(root / "exchanged" / "tiny")
    for format in ("scan", "butd-tsv", "lxmert-tsv", "vinvl", "bua-npz", "karpathy"):
        data.export(format, root / "exchange" / format)
    captions = next((root / "exchange" / "karpathy").glob("*.json"))
    for format in ("butd-tsv", "lxmert-tsv", "vinvl", "bua-npz"):
        shutil.copy(captions, root / "exchange" / format / "captions.json")
    write_json(root / "exchange" / "scan" / "id_mapping.json", {row.id: row.path for row in data.rows})
    _brought(root / "brought", data, captions)

    imported, images = root / "imported", root / "exchange" / "butd-tsv" / "regions.tsv"
    listed, settings = imported / "manifest", ImportSettings(images_per_shard=4)
    imported_manifest.run(
        images=images, captions=images.with_name("captions.json"), format="butd-tsv", out=listed, **settings.given
    )
    job, _ = prepare(manifest=listed, images=images, settings=settings, staging=imported / "staging", readers=2)
    job.maker.finished.prepare()
    for part in job.parts:
        job.maker.make(part, {})  # and killed here


def _weights(folder: Path) -> None:
    """Detectors' checkpoints."""
    folder.mkdir()
    tiny = Path(__file__).parents[1] / "data" / "detectron2_tiny.pth"
    shutil.copy(tiny, folder / "tiny.pth")
    state = torch.load(tiny, weights_only=False)
    state = state.get("model", state)
    save_file({name: torch.as_tensor(value).clone() for name, value in state.items()}, folder / "tiny.safetensors")
    torch.save(
        {n: torch.cat([v, v]) if "objectness_logits" in n else v for n, v in state.items()}, folder / "caffe.pth"
    )
    arrays = {name: np.asarray(value) for name, value in state.items()}
    (folder / "tiny.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "a test"}, protocol=2))
    from tests.extract.region_files import WEIGHTS

    shutil.copy(WEIGHTS, folder / "demo.safetensors")


def opened(data: Path, split: str, run: str) -> RetrievalData:
    """A data set's split as a run reads it."""
    return RetrievalData(
        data / "manifest",
        data / "regions",
        data / "tokens",
        split,
        text_features=data / "text_features" if run == "cached" else None,
    )


def source(root: Path, run: str = "plain") -> index.Source:
    """Where an index of “tiny” comes from."""
    data, model = root / "data" / "tiny", root / "runs" / run / "model"
    words = WORDS.model_copy(update={"tokenizer": data / "encoder", "max_pieces": 32})
    vocabulary = data / "tokens" / "vocabulary.json"
    return index.Source(
        run=run,
        dataset="tiny",
        model=model,
        manifest=data / "manifest",
        regions=data / "regions",
        tokens=data / "tokens",
        text_features=None,
        words=RunWords(words, False, None, vocabulary, read_record(model)["recipe"]),
    )


def state_folder(root: Path) -> StateFolder:
    """Where the half-trained run “aligned” waits."""
    data = root / "data" / "tiny"
    train = opened(data, "train", "aligned")
    record = {"settings": RUNS["aligned"].model_dump(), "recipe": data_recipe(train), "teachers": None}
    key = {"manifest": images_sha256(data / "manifest"), "tokens": sha256(data / "tokens" / "index.json")}
    return StateFolder(root / "staging", "aligned", record | key)


def _runs(root: Path) -> None:
    """Runs of untrained models, evaluated; one that waits half trained; an ensemble, and indexes."""
    data = root / "data" / "tiny"
    for name, settings in RUNS.items():
        torch.manual_seed(0)
        train, folder = opened(data, "train", name), root / "runs" / name
        dims = (train.region_store.dim, train.vocabulary_size)
        model = build_model(settings, *dims, text_dim=train.text_dim, boundary_ids=train.boundary_ids)
        record = {
            "settings": settings.model_dump(),
            "feature_dim": dims[0],
            "vocabulary_size": dims[1],
            "recipe": data_recipe(train),
            **{"parameters": 1, "best_epoch": 1, "val_rsum": 1.0, "seconds": 1.0},
        }
        save_model(folder / "model", model, record)
        write_text(
            folder / "epochs.csv",
            "epoch,step,seconds,learning_rate,loss,triplet,val_rsum\n0,3,1,0.1,5,3,90\n1,6,2,,4,2,99\n",
        )
        if name == "aligned":
            optimizer = torch.optim.Adam(model.parameters())
            sum(parameter.sum() for parameter in model.parameters()).backward()
            optimizer.step()
            state = state_folder(root)
            progress = Progress(0, 1, {"triplet": 1.0}, [], 3.0, 0, 5.0)
            state.keep_best(model, record, progress)
            state.save(model, optimizer, progress)
        evaluate.run(
            name=name,
            manifest_dir=_without_coco(data),
            regions=data / "regions",
            tokens=data / "tokens",
            model=folder / "model",
            settings=EVALUATION,
            device="cpu",
            batch_size=16,
            out=folder / "evaluation",
            metrics=folder / "metrics.json",
            correspondence=folder / "correspondence.json",
            pieces=settings.text.pieces,
            text_features=data / "text_features" if name == "cached" else None,
        )
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    cost = json.loads((benchmarks / "search_cost.json").read_text())
    write_json(root / "runs" / "plain" / "cost.json", cost | {"run": "plain"})
    runs = ("plain", "aligned")
    ensemble.run(name="both", runs=runs, runs_dir=root / "runs", settings=EVALUATION, out=root / "ensembles" / "both")
    for kind in ("exact", "hnsw"):
        out = root / "indexes" / kind
        index.run(source=source(root), kind=kind, out=out, device="cpu", batch_size=16)


def _without_coco(data: Path) -> Path:
    """The manifest's folder without COCO's ids: COCO's own figures take seconds."""
    folder = data.parent / "plain_manifest"
    shutil.copytree(data / "manifest", folder, dirs_exist_ok=True)
    write_manifest(folder, [replace(row, caption_ids=()) for row in Manifest.open(data / "manifest").captioned])
    return folder


def _beside(root: Path) -> None:
    """What lies in a project beside data and runs."""
    shutil.copy(Path(__file__).parents[2] / "params.yaml", root / "params.yaml")
    row = dict.fromkeys(COLUMNS) | {"seeds": 1, "rsum": 60.5, "low": 50, "high": 70, "i2t_r1": 1.5, "t2i_r1": 2.5}
    rows = [row | {"row": 64, "fitting": 0.5, "fitting_chance": 0.1, "in_use": 3}, row | {"row": 8}]
    write_table(root / "studies" / "size" / "table.csv", rows)
