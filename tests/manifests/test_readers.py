"""Captions as they are published: which reader a file is for, and what it reads of it."""

import io
import json
import logging
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.columns import roles
from manifests.errors import InputError
from manifests.left_out import FILE
from manifests.manifest import has_word, run
from manifests.readers import recognise
from manifests.tables import Manifest

NAMES = ("a 1.jpg", "b.jpg", "sub/c.png")
TEXTS = {
    "captions.csv": "image,caption\na 1.jpg,A dog.\na 1.jpg,Two dogs.\nb.jpg,A cat.\nsub/c.png,A bird.\n",
    "semicolons.csv": "Image;Caption\na 1.jpg;A dog.\na 1.jpg;Two dogs.\nb.jpg;A cat.\nsub/c.png;A bird.\n",
    "captions.txt": "image,caption\na 1.jpg,A dog.\na 1.jpg,Two dogs.\nb.jpg,A cat.\nsub/c.png,A bird.\n",
    "results.csv": "image_name| comment_number| comment\na 1.jpg| 0| A dog.\na 1.jpg| 1| Two dogs.\n"
    "b.jpg| 0| A cat.\nsub/c.png| 0| A bird.\n",
    "tabs.tsv": "FILE NAME\ttext\twidth\na 1.jpg\tA dog.\t5\na 1.jpg\tTwo dogs.\t5\nb.jpg\tA cat.\t5\n"
    "sub/c.png\tA bird.\t5\n",
    "results.token": "a 1.jpg#0\tA dog.\na 1.jpg#1\tTwo dogs.\nb.jpg#0\tA cat.\nsub/c.png#0\tA bird.\n",
    "cn.txt": "a 1.jpg#enc#0 A dog.\na 1.jpg#enc#1 Two dogs.\nb.jpg#enc#0 A cat.\nsub/c.png#enc#0 A bird.\n",
    "metadata.jsonl": '{"file_name": "a 1.jpg", "text": "A dog."}\n{"file_name": "a 1.jpg", "text": "Two dogs."}\n'
    '{"file_name": "b.jpg", "text": "A cat.", "label": 3}\n{"file_name": "sub/c.png", "text": "A bird."}\n',
    "ours.jsonl": '{"image": "a 1.jpg", "captions": ["A dog.", "Two dogs."]}\n'
    '{"image": "b.jpg", "captions": ["A cat."]}\n'
    '{"image": "sub/c.png", "captions": ["A bird."]}\n',
    "blip.json": '[{"image": "a 1.jpg", "caption": ["A dog.", "Two dogs."]}, '
    '{"image": "b.jpg", "caption": ["A cat."]}, '
    '{"image": "sub/c.png", "caption": ["A bird."]}]',
    "albef.json": '[{"image": "a 1.jpg", "caption": "A dog.", "image_id": "x1"}, {"image": "a 1.jpg", "caption": '
    '"Two dogs.", "image_id": "x1"}, {"image": "b.jpg", "caption": "A cat.", "image_id": "x2"}, '
    '{"image": "sub/c.png", "caption": "A bird.", "image_id": "x3"}]',
}
READER = {".csv": "folder", ".tsv": "folder", ".jsonl": "folder", ".token": "flickr", ".json": "image-list"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image root with three pictures."""
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.new("RGB", (9, 9), (60 * number, 7, 9)).save(root / name)
    return root


def read(
    root: Path, captions: Path, format: str | None = None, **options: object
) -> list[tuple[str, str, tuple[str, ...]]]:
    """(path, split, captions) of the rows of a manifest that is made with the reader that is recognised."""
    out = root.parent / "out"
    run(images=root, captions=captions, format=format or recognise(captions)[0], out=out, **options)
    return [(row.path, row.split, row.captions) for row in Manifest.open(out).captioned]


def write(root: Path, name: str, content: str | bytes) -> Path:
    path = root.parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


EXPECTED = [("a 1.jpg", ("A dog.", "Two dogs.")), ("b.jpg", ("A cat.",)), ("sub/c.png", ("A bird.",))]


@pytest.mark.parametrize("name", TEXTS)
def test_captions_as_they_are_published(root: Path, name: str) -> None:
    path = write(root, name, TEXTS[name])
    reader, facts = recognise(path)
    assert reader == {"captions.txt": "folder", "cn.txt": "flickr"}.get(name, READER.get(path.suffix))
    assert (facts.pictures, facts.captions, facts.captions_each, facts.splits) == (3, 4, (1, 2), None)
    assert [(path, captions) for path, _, captions in read(root, path)] == EXPECTED


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("captions.csv", b'b.jpg,"A 5" cat.', "not a valid table (',' expected after '\"')"),
        ("captions.csv", b'b.jpg,"A cat.', "not a valid table (unexpected end of data)"),
        ("captions.csv", b"b.jpg,A caf\xe9.", "(0xe9) is not UTF-8"),
        ("captions.csv", b"b.jpg,A cat, a dog.", "3 fields where the header has 2"),
        ("results.csv", b"b.jpg| 4   A cat runs .", "2 fields where the header has 3"),  # in Kaggle's own file
        ("results.token", b"b.jpg A cat.", "no image, number and caption"),
        ("results.token", b"b.jpg#5\tA caf\xe9.", "(0xe9) is not UTF-8"),
        ("metadata.jsonl", b'{"file_name": "b.jpg", "text": "A ca', "not valid JSON"),
        ("metadata.jsonl", b'{"file_name": "b.jpg", "text": "A caf\xe9."}', "(0xe9) is not UTF-8"),
        ("metadata.jsonl", b'{"file_name": "b.jpg", "text": null}', "must be a list of texts"),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_one_row_that_cannot_be_read_is_one_row(root: Path, name: str, row: bytes, message: str, last: bool) -> None:
    """Wherever it stands, and whatever follows it."""
    lines = TEXTS[name].encode().splitlines(keepends=True)
    lines.insert(len(lines) if last else 2, row + b"\n")
    path, number = write(root, name, b"".join(lines)), len(lines) if last else 3
    with pytest.raises(InputError) as caught:
        read(root, path)
    assert message in caught.value.what and caught.value.where.startswith(f"{path} line {number}")
    assert "`source.unreadable: skip`" in caught.value.fix
    assert [(path, captions) for path, _, captions in read(root, path, unreadable="skip")] == EXPECTED
    (listed,) = [json.loads(line) for line in (root.parent / "out" / FILE).read_text().splitlines()]
    assert message in listed["reason"] and listed["row"].startswith(f"line {number}")


@pytest.mark.parametrize("kind", [int, str])
def test_cocos_annotations_keep_their_ids(root: Path, kind: type) -> None:
    images = [{"id": 7 + n, "file_name": name, "height": 9} for n, name in enumerate(NAMES)]
    texts = [(7, "A dog."), (9, "A bird."), (7, "Two dogs."), (8, "A cat.")]
    annotations = [{"id": 100 + n, "image_id": kind(image), "caption": text} for n, (image, text) in enumerate(texts)]
    path = write(
        root,
        "captions_val2014.json",
        json.dumps({"info": {"year": 2014}, "images": images, "annotations": annotations}),
    )
    assert recognise(path)[0] == "coco"
    assert [(path, captions) for path, _, captions in read(root, path)] == EXPECTED
    listed = Manifest.open(root.parent / "out")
    assert listed.ids == ["7", "8", "9"] and listed.caption_ids(0, 4) == [100, 102, 103, 101]


def test_cocos_other_annotations_are_named(root: Path) -> None:
    boxes = {
        "images": [{"id": 1, "file_name": "b.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}],
    }
    path = write(root, "instances_val2014.json", json.dumps(boxes))
    with pytest.raises(
        InputError, match=r"annotations\[0\].*have id, image_id, bbox, and no caption.*captions_\*\.json"
    ):
        read(root, path)


def test_persons_are_no_images(root: Path) -> None:
    rows = [
        {"split": "train", "captions": ["A man.", "A person."], "file_path": "a 1.jpg", "id": 1},
        {"split": "train", "captions": ["A man again."], "file_path": "b.jpg", "id": 1},
        {"split": "test", "captions": ["A woman."], "file_path": "sub/c.png", "id": 2},
    ]
    path = write(root, "reid_raw.json", json.dumps(rows))
    assert read(root, path) == [
        ("a 1.jpg", "train", ("A man.", "A person.")),
        ("b.jpg", "train", ("A man again.",)),
        ("sub/c.png", "test", ("A woman.",)),
    ]


@pytest.mark.parametrize(("first", "last"), [("a 1.txt", "c.txt"), ("a 1.jpg.txt", "c.caption")])
def test_a_text_beside_each_picture(root: Path, first: str, last: str) -> None:
    (root / first).write_bytes(b"\xef\xbb\xbfA dog.\r\n\nTwo dogs.\n")
    (root / "sub" / last).write_text("A bird.")
    assert recognise(root)[0] == "pictures"
    rows = read(root, root)
    assert [(path, captions) for path, _, captions in rows] == [
        ("a 1.jpg", ("A dog.", "Two dogs.")),
        ("b.jpg", ()),
        ("sub/c.png", ("A bird.",)),
    ]


def test_folders_that_are_called_as_splits_are(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "Valid", "test")):
        (tmp_path / "root" / split).mkdir(parents=True)
        Image.new("RGB", (9, 9), (60 * number, 7, 9)).save(tmp_path / "root" / split / "x.jpg")
    assert [(path, split) for path, split, _ in read(tmp_path / "root", tmp_path / "root")] == [
        ("Valid/x.jpg", "val"),
        ("test/x.jpg", "test"),
        ("train/x.jpg", "train"),
    ]
    assert Manifest.open(tmp_path / "out").ids == ["Valid/x", "test/x", "train/x"]


def write_shards(root: Path, shards: dict[str, dict[str, str]], texts: dict[str, bytes] | None = None) -> Path:
    """Shards of {name: {key: picture}}, whose captions say their keys, or are `texts`."""
    folder = root.parent / "shards"
    folder.mkdir()
    for shard, pictures in shards.items():
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for key, name in pictures.items():
                members = {
                    "jpg": (root / name).read_bytes(),
                    "txt": (texts or {}).get(key, f"It is {key}.".encode()),
                    "json": b'{"status": "success"}',
                }
                for end, content in members.items():
                    member = tarfile.TarInfo(f"{key}.{end}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def test_img2datasets_shards_are_read_where_they_lie(root: Path) -> None:
    first = {"000000000": NAMES[0], "000000001": NAMES[1]}
    shards = write_shards(root, {"00000": first, "00001": {"000010000": NAMES[2]}})
    reader, facts = recognise(shards)
    assert (reader, facts.pictures, facts.captions) == ("img2dataset", 3, 3)
    rows = read(shards, shards)
    assert [(path, captions) for path, _, captions in rows] == [
        ("00000.tar/000000000.jpg", ("It is 000000000.",)),
        ("00000.tar/000000001.jpg", ("It is 000000001.",)),
        ("00001.tar/000010000.jpg", ("It is 000010000.",)),
    ]
    assert [(row.width, row.height) for row in Manifest.open(root.parent / "out").images] == [(9, 9)] * 3


def test_keys_of_several_shards_get_their_shard_into_the_id(root: Path) -> None:
    shards = write_shards(root, {"a": {"0": NAMES[0], "1": NAMES[1]}, "b": {"0": NAMES[2]}})
    assert [path for path, _, _ in read(shards, shards)] == ["a.tar/0.jpg", "a.tar/1.jpg", "b.tar/0.jpg"]
    assert Manifest.open(root.parent / "out").ids == ["a.tar/0", "1", "b.tar/0"]


def test_a_shard_that_is_cut_off_and_a_caption_that_is_no_text(root: Path) -> None:
    shards = write_shards(root, {"a": dict(zip("012", NAMES, strict=True)), "b": {"3": NAMES[0]}}, {"1": b"\xff\xfe"})
    path = shards / "a.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset + 100])
    with pytest.raises(InputError) as caught:
        read(shards, shards)
    assert "the archive is cut off" in caught.value.what and "(0xff) is not UTF-8" in caught.value.what
    assert [path for path, _, _ in read(shards, shards, unreadable="skip")] == ["a.tar/0.jpg", "b.tar/3.jpg"]


@pytest.mark.parametrize("archive", [True, False])
def test_oscars_captions_by_split(root: Path, archive: bool) -> None:
    folder = root.parent / "oscar"
    folder.mkdir()
    for split, value in (("train", {"a": ["A dog.", "Two dogs."]}), ("test", {"b": '["A cat."]'})):
        if archive:
            with zipfile.ZipFile(folder / f"{split}_captions.pt", "w") as file:
                file.writestr(f"{split}_captions/data.pkl", pickle.dumps(value, 2))
        else:
            (folder / f"{split}_captions.json").write_text(json.dumps(value))
    reader, facts = recognise(folder)
    assert (reader, facts.splits, facts.captions) == ("splits", {"train": 1, "test": 1}, 3)


def test_a_pickle_that_would_run_code_is_refused(root: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return eval, ("1/0",)

    path = write(root, "train_captions.pt", pickle.dumps({"a": Evil()}))
    with pytest.raises(InputError, match="asks for builtins.eval"):
        recognise(path)


def test_a_captions_file_a_split(root: Path) -> None:
    folder = root.parent / "annotations"
    write(root, "annotations/instances_train2014.json", "{}")
    for number, (split, name) in enumerate((("train", "a 1.jpg"), ("val", "b.jpg"))):
        (root / f"{split}2014").mkdir()
        (root / name).rename(root / f"{split}2014" / name)
        value = {
            "images": [{"id": number, "file_name": name}],
            "annotations": [{"image_id": number, "caption": "A dog."}],
        }
        write(root, f"annotations/captions_{split}2014.json", json.dumps(value))
    assert [(path, split) for path, split, _ in read(root, folder)] == [
        ("train2014/a 1.jpg", "train"),
        ("val2014/b.jpg", "val"),
    ]


def test_hugging_faces_folder(root: Path) -> None:
    write(root, "pictures/metadata.jsonl", TEXTS["metadata.jsonl"])
    assert recognise(root)[0] == "splits"
    assert [(path, captions) for path, _, captions in read(root, root)] == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.md", "# Notes", "text that begins with '# Notes'"),
        ("x.json", '{"data": [{"url": "a", "tags": 1}]}', "JSON with the keys data, url, tags"),
        ("x.json", '{"images": [{"file_name"', "not valid JSON"),
        ("x.bin", b"\0\1\2", "a file of other bytes than text's"),
        ("x.parquet", b"PAR1\0", "a Parquet file"),
        ("x.txt.gz", b"\x1f\x8b\0", "packed by gzip"),
        ("x.xlsx", b"PK\3\4\0", "what Excel writes"),
        ("x.txt", "image,caption\n".encode("utf-16"), "text of UTF-16"),
        ("x.tar", b"\0" * 257 + b"ustar", "a tar archive; of shards, give the folder"),
        ("x.txt", b"", "an empty file"),
    ],
)
def test_an_unknown_file_is_described(root: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        recognise(write(root, name, content))
    assert message in str(caught.value)
    assert "not valid JSON" in message or "a CSV file with the header image,caption" in caught.value.fix


def test_a_file_of_another_kind_than_given_is_named(root: Path) -> None:
    path = write(root, "results.token", TEXTS["results.token"])
    with pytest.raises(
        InputError, match=r"Flickr's token file, not Karpathy's JSON\. Fix: set `source\.format: flickr`"
    ):
        read(root, path, "karpathy")


def test_long_fields_are_read(root: Path) -> None:
    long = "word " * 12_000
    path = write(root, "c.csv", f'image,caption\na 1.jpg,"{long}"\nb.jpg,A cat.\n')
    assert read(root, path)[0][2] == (long,)
    path = write(root, "c.csv", f'image,caption\na 1.jpg,"{long * 2}"\nb.jpg,A cat.\n')
    with pytest.raises(InputError, match="the caption has 120,000 characters, and may have 65,536"):
        read(root, path)


def test_equal_file_names_get_their_folders_into_the_id(root: Path) -> None:
    for folder in ("001", "002"):
        (root / folder).mkdir()
        Image.new("RGB", (9, 9), (int(folder), 80, 9)).save(root / folder / "0001.png")
    images = [
        {"filename": name, "split": "train", "sentences": [{"raw": "A dog."}]}
        for name in ("001/0001.png", "002/0001.png", "b.jpg")
    ]
    read(root, write(root, "k.json", json.dumps({"images": images})))
    assert Manifest.open(root.parent / "out").ids == ["001/0001", "002/0001", "b"]
    Image.new("RGB", (9, 9), 80).save(root / "b.png")
    read(root, write(root, "c.csv", "image,caption\nb.jpg,A cat.\nb.png,A dog.\n"))
    assert Manifest.open(root.parent / "out").ids == ["b.jpg", "b.png"]


def test_an_image_root_one_level_too_deep(root: Path) -> None:
    entry = {"filepath": "pictures", "filename": "b.jpg", "split": "train", "sentences": [{"raw": "A cat."}]}
    assert read(root, write(root, "k.json", json.dumps({"images": [entry]})))[0][0] == "b.jpg"
    images = [entry, entry | {"filepath": "others"}]
    with pytest.raises(InputError, match=rf"give the folder above as `source\.images`: {root.parent}"):
        read(root, write(root, "k.json", json.dumps({"images": images})))
    with pytest.raises(InputError, match=rf"none of 3 pictures is there.*set `source\.images: {root}`"):
        read(root.parent, write(root, "c.csv", TEXTS["captions.csv"]))


def test_paths_without_a_suffix_are_named_so(root: Path) -> None:
    content = json.dumps({name.rpartition(".")[0]: ["A dog."] for name in NAMES})
    with pytest.raises(InputError, match=r"none of 3 pictures.*write the paths with their suffix, as in a 1\.jpg"):
        read(root, write(root, "mapping.json", content))


def test_absolute_paths_below_the_image_root(root: Path) -> None:
    assert read(root, write(root, "c.csv", f"image,caption\n{root / 'b.jpg'},A cat.\n"))[0][0] == "b.jpg"


@pytest.mark.parametrize("column", ["photo", "picture", "Image File"])
def test_backslashes_are_read_where_the_picture_is_there(root: Path, column: str) -> None:
    for path in ("sub\\c.png", f"{root.name}\\sub\\c.png", f"{root}/sub/c.png".replace("/", "\\")):
        assert read(root, write(root, "c.csv", f"{column},caption\n{path},A bird.\n"))[0][0] == "sub/c.png"


@pytest.mark.parametrize("column", ["photo", "photos", "photo_id"])
def test_beside_an_id_a_photo_need_not_be_a_file(column: str) -> None:
    assert roles(["id", "caption", column], "c.csv", "") == {"id": "id", "caption": "caption"}
    assert roles(["id", "caption", "path", column], "c.csv", "")["image"] == "path"


def test_columns_that_are_missing_are_told_with_all_their_names(root: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(root, write(root, "c.csv", "bild,wort\na.png,One.\n"))
    assert "columns 'image' and 'caption' are missing among 'bild', 'wort'" in caught.value.what
    for name in ("photo", "picture", "file_name", "sentence"):
        assert name in caught.value.fix
    assert "as many fields" not in caught.value.fix


def spoilt(root: Path) -> Path:
    """A table with two sound images and a mistake of each kind."""
    return write(
        root,
        "c.csv",
        "image,caption,id\na 1.jpg,A dog.,1\na 1.jpg,@@,1\nnone.jpg,Gone.,2\nb.jpg,A cat.,1\nb.jpg,A, B,3\n"
        "sub/c.png,...,4\nsub/c.png,A bird.,4\n../x.jpg,Out.,5\n",
    )


def test_all_mistakes_are_listed_at_once(root: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(root, spoilt(root))
    message = caught.value.what
    assert message.startswith("6 mistakes (2 broken rows, 2 captions without a word, 1 repeated row, 1 missing): ")
    for part in ("line 3 the caption '@@' has no word", "line 4 image 'none.jpg' can't be read", "line 6 4 fields"):
        assert part in message
    assert "`source.missing: skip` and `source.unreadable: skip`" in caught.value.fix
    assert not (root.parent / "out").exists()


def test_what_is_left_out_is_listed_with_its_reason(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    path = spoilt(root)
    rows = read(root, path, missing="skip", unreadable="skip")
    assert [(path, captions) for path, _, captions in rows] == [("a 1.jpg", ("A dog.",)), ("sub/c.png", ("A bird.",))]
    listed = [json.loads(line) for line in (root.parent / "out" / FILE).read_text().splitlines()]
    assert {(item["kind"], item["row"], item["id"]) for item in listed} == {
        ("row", "line 6", None),
        ("row", "line 9", "5"),
        ("caption", "line 3", "1"),
        ("caption", "line 7", "4"),
        ("repeated", "line 5", "1"),
        ("missing", "line 4", "2"),
    }
    assert all(item["file"] == str(path) and item["reason"] for item in listed)
    assert "6 left out (2 broken rows" in caplog.records[-1].getMessage()
    with pytest.raises(InputError, match="line 4: image 'none.jpg' can't be read"):
        read(root, path, unreadable="skip")


def test_more_than_ten_mistakes_are_listed_in_a_file(root: Path) -> None:
    path = write(
        root, "c.csv", "image,caption\n" + "".join(f"{n}.jpg,A dog.\n" for n in range(1000)) + "b.jpg,A cat.\n"
    )
    with pytest.raises(InputError) as caught:
        read(root, path)
    listed = root.parent / "out-refused.jsonl"
    assert caught.value.what.startswith("1,000 mistakes (1,000 missing)") and str(listed) in caught.value.what
    assert len(listed.read_text().splitlines()) == 1000
    read(root, path, missing="skip")
    assert not listed.exists()


def test_empty_pictures_in_two_splits_are_no_leak(root: Path) -> None:
    (root / "x.jpg").write_bytes(b"")
    (root / "y.jpg").write_bytes(b"")
    text = "image,caption,split\nb.jpg,A cat.,train\nx.jpg,A dog.,train\ny.jpg,A dog.,test\n"
    assert len(read(root, write(root, "c.csv", text))) == 3


@pytest.mark.parametrize("text", ["@@", "...", " \t ", "«»", "?!", "…—"])
def test_punctuation_is_no_word(text: str) -> None:
    assert not has_word(text)


@pytest.mark.parametrize("text", ["$", "a", "…é", "狗", "😀", "+"])
def test_anything_else_is(text: str) -> None:
    assert has_word(text)


def test_a_word_is_what_spacy_takes_for_one() -> None:
    import spacy

    rng, nlp = np.random.default_rng(3), [spacy.blank(language) for language in ("en", "zh", "xx")]
    characters = [*"ab1 .,!?@#$%&*()-'\"«»…。、狗 \t\u200d\u00a0", "é", "😀"]
    for _ in range(300):
        text = "".join(rng.choice(characters, rng.integers(1, 6)))
        for own in nlp:
            found = any(not (token.is_punct or token.is_space) for token in own(text))
            assert found == has_word(text), (own.lang, text)
