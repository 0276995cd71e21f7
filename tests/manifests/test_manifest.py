"""The manifest stage on real pictures: what it writes, and every mistake that it refuses with row and fix."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from manifests.errors import InputError
from manifests.grounding import Phrase, read_grounding
from manifests.manifest import run
from manifests.tables import Manifest


@pytest.fixture
def root(tmp_path):
    """An image root with a.png (5 x 4 pixels), b.png, c.png and sub/d.png, all different."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for shade, name in enumerate(("a.png", "b.png", "c.png", "sub/d.png")):
        Image.fromarray(np.full((4, 5, 3), 40 * shade, np.uint8)).save(folder / name)
    return folder


def entry(filename="a.png", *, split="train", raws=("A dog.",), **more):
    return {"filename": filename, "split": split, "sentences": [{"raw": raw, "tokens": []} for raw in raws], **more}


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def karpathy(root, images, **options):
    captions = root.parent / "dataset.json"
    captions.write_text(images if isinstance(images, str) else json.dumps({"dataset": "x", "images": images}))
    run(images=root, captions=captions, format="karpathy", out=root.parent / "out", **options)
    return list(Manifest.open(root.parent / "out").captioned)


def folder(root, name, text, **options):
    captions = root.parent / name
    captions.write_bytes(text if isinstance(text, bytes) else text.encode())
    run(images=root, captions=captions, format="folder", out=root.parent / "out", **options)
    return list(Manifest.open(root.parent / "out").captioned)


def refusal(call, *arguments, **options):
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    assert error.value.fix
    return error.value


def test_karpathy_rows(root):
    rows = karpathy(
        root,
        [
            entry("d.png", filepath="sub", cocoid=42, split="restval", raws=("One.", " Two "), sentids=[0, 1]),
            entry("b.png", split="val", imgid=3),
            entry("a.png", split="test", raws=()),
        ],
    )
    assert [(row.id, row.path, row.split, row.captions) for row in rows] == [
        ("42", "sub/d.png", "train", ("One.", " Two ")),
        ("b", "b.png", "val", ("A dog.",)),
        ("a", "a.png", "test", ()),
    ]
    assert [(row.width, row.height) for row in rows] == [(5, 4)] * 3
    assert rows[1].sha256 == hashlib.sha256((root / "b.png").read_bytes()).hexdigest()
    assert not (root.parent / "out" / "grounding.jsonl").exists()


def test_csv_rows(root):
    first = 'b.png,"A dog, ""Rex"".\nIt runs.",train'
    text = "\r\n".join(["\ufeffimage,caption,split", first, "", "a.png,One.,test", "b.png,Two.,train", ""])
    rows = folder(root, "captions.csv", text)
    assert [(row.id, row.split, row.captions) for row in rows] == [
        ("b", "train", ('A dog, "Rex".\nIt runs.', "Two.")),
        ("a", "test", ("One.",)),
    ]


def test_tsv_and_jsonl_give_what_csv_gives(root):
    csv = folder(root, "c.csv", "image,caption,id\na.png,One.,x\na.png,Two.,x\nsub/d.png,Three.,y\n")
    tsv = folder(root, "c.tsv", "id\timage\tcaption\nx\ta.png\tOne.\nx\ta.png\tTwo.\ny\tsub/d.png\tThree.\n")
    lines = [
        {"image": "a.png", "captions": ["One.", "Two."], "id": "x"},
        {"image": "sub/d.png", "captions": ["Three."], "id": "y"},
    ]
    jsonl = folder(root, "c.jsonl", "\n".join(map(json.dumps, lines)))
    assert csv == tsv == jsonl
    assert [row.id for row in csv] == ["x", "y"]


def test_two_runs_are_byte_identical(root):
    images = [entry("b.png"), entry("a.png", split="test")]
    karpathy(root, images)
    first = contents(root.parent / "out")
    karpathy(root, images)
    assert contents(root.parent / "out") == first


def test_splits_by_hash_follow_the_fractions_and_do_not_move(root):
    names = [f"{number}.png" for number in range(300)]
    for number, name in enumerate(names):
        Image.fromarray(np.full((1, 1, 3), (number // 256, number % 256, 9), np.uint8)).save(root / name)
    table = ["image,caption", *(f"{name},A dog." for name in names)]
    all_rows = folder(root, "c.csv", "\n".join(table), val_fraction=0.2, test_fraction=0.3)
    counts = [sum(row.split == split for row in all_rows) for split in ("train", "val", "test")]
    assert np.allclose(np.array(counts) / 300, (0.5, 0.2, 0.3), atol=0.08)
    assert [row.path for row in all_rows] == names
    fewer = folder(root, "c.csv", "\n".join([table[0], *table[150:]]), val_fraction=0.2, test_fraction=0.3)
    assert fewer == all_rows[149:]
    assert {row.split for row in folder(root, "c.csv", "\n".join(table), val_fraction=0, test_fraction=0)} == {"train"}


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_are_upright(root, suffix, orientation):
    image, exif = Image.new("RGB", (30, 20)), Image.Exif()
    exif[0x0112] = orientation
    image.save(root / f"turned.{suffix}", exif=exif)
    (row,) = karpathy(root, [entry(f"turned.{suffix}")])
    assert (row.width, row.height) == ((20, 30) if orientation >= 5 else (30, 20))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8\xff\xe0broken", b"\x89PNG\r\n\x1a\n\0\0"])
def test_a_picture_without_readable_header_is_kept_without_size(root, content):
    (root / "bad.jpg").write_bytes(content)
    rows = karpathy(root, [entry("bad.jpg"), entry("a.png")])
    assert [(row.id, row.width, row.height) for row in rows] == [("bad", None, None), ("a", 5, 4)]


def test_the_same_bytes_in_two_splits_can_be_allowed(root):
    (root / "copy.png").write_bytes((root / "a.png").read_bytes())
    first, second = karpathy(root, [entry("a.png"), entry("copy.png", split="test")], duplicates="allow")
    assert first.sha256 == second.sha256 and (first.split, second.split) == ("train", "test")


def test_a_linked_picture_and_a_linked_root_are_fine(root):
    """DVC's symlink cache and labs' shared folders are such links."""
    (root.parent / "real.png").write_bytes((root / "sub" / "d.png").read_bytes())
    (root / "link.png").symlink_to(root.parent / "real.png")
    (root.parent / "elsewhere").symlink_to(root)
    captions = root.parent / "c.csv"
    captions.write_text("image,caption\nlink.png,A dog.\n")
    run(images=root.parent / "elsewhere", captions=captions, format="folder", out=root.parent / "out")
    assert list(Manifest.open(root.parent / "out").captioned)[0].path == "link.png"


@pytest.mark.parametrize(
    ("second", "row", "words"),
    [
        (entry("none.png"), "images[1]", "'none.png' can't be read"),
        (entry("sub"), "images[1]", "'sub' can't be read"),
        (entry("b.png", cocoid=1), "images[1]", "id '1' was already given at images[0]"),
        (entry("b.png", cocoid=1, split="val"), "images[1]", "split 'val' here and in 'train' at images[0]"),
        (entry("./a.png", cocoid=9), "images[1]", "image 'a.png' was already given at images[0]"),
        (entry("a.png", cocoid=9, split="test"), "images[1]", "in split 'test' here and in 'train' at images[0]"),
        (entry("copy.png", split="test"), "images[1]", "has the same bytes as 'a.png' (images[0]) in split 'train'"),
        (entry("b.png", raws=("A dog.", " \t")), "images[1].sentences[1]", "the caption is empty"),
        (entry("b.png", raws=("A \ud800.",)), "images[1].sentences[0]", "surrogate"),
        (entry("b.png", cocoid="a\0"), "images[1]", "the id 'a\\x00' is a control character"),
        (entry("b.png", cocoid="a\ud800"), "images[1]", "surrogate"),
        (entry("b\n.png"), "images[1]", "the id 'b\\n' is a control character"),
        (entry("b.png", split="holdout"), "images[1]", "unknown split 'holdout'"),
        (entry("../out.png"), "images[1]", "out of the image root"),
        (entry("x.png", filepath="sub/../.."), "images[1]", "out of the image root"),
        (entry("/etc/hostname"), "images[1]", "out of the image root"),
        (
            entry("sub\\z.png"),
            "images[1]",
            r"path 'sub\z.png' has backslashes, and there is no 'sub/z.png' either",
        ),
        (entry("loop.png"), "images[1]", "can't be read"),
        (entry("b\0.png"), "images[1]", "names no file"),
        (entry(3), "images[1].filename", "must be text"),
        (entry("b.png", cocoid=True), "images[1]", "'cocoid'"),
        ({"filename": "b.png", "split": "train"}, "images[1]", "key 'sentences' is missing"),
        ({"filename": "b.png", "sentences": []}, "images[1]", "key 'split' is missing"),
        ({"split": "train", "sentences": []}, "images[1]", "key 'filename' is missing"),
        (entry("b.png") | {"sentences": [{"tokens": []}]}, "images[1].sentences[0]", "key 'raw' is missing"),
        (entry("b.png") | {"sentences": ["A dog."]}, "images[1].sentences[0]", "must be an object"),
        ("b.png", "images[1]", "must be an object"),
    ],
)
def test_a_bad_karpathy_image_is_refused(root, second, row, words):
    (root / "copy.png").write_bytes((root / "a.png").read_bytes())
    (root.parent / "out.png").write_bytes((root / "b.png").read_bytes())
    (root / "loop.png").symlink_to(root / "loop.png")
    error = refusal(karpathy, root, [entry("a.png", cocoid=1), second])
    assert error.where == f"{root.parent / 'dataset.json'} {row}"
    assert words in error.what
    assert not (root.parent / "out").exists()


def test_the_same_bytes_twice_in_one_split_are_fine(root):
    (root / "copy.png").write_bytes((root / "a.png").read_bytes())
    first, second = karpathy(root, [entry("a.png"), entry("copy.png")])
    assert first.sha256 == second.sha256


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('{"images": [\n  {"filename": }]}', "line 2 column 16", "not valid JSON"),
        ('{"images": [NaN]}', "line 1", "not valid JSON"),
        ("[" * 100_000, "line 1", "not valid JSON"),
        ("[]", "", "no list 'images'"),
        ('{"images": {}}', "", "no list 'images'"),
        ('{"images": []}', "", "there are no images"),
        ("", "line 1 column 1", "not valid JSON"),
    ],
)
def test_a_bad_karpathy_file_is_refused(root, text, place, words):
    error = refusal(karpathy, root, text)
    assert error.where == f"{root.parent / 'dataset.json'} {place}".strip()
    assert words in error.what


@pytest.mark.parametrize(
    ("name", "text", "place", "words"),
    [
        ("c.csv", "image,caption\na.png,One.\nnone.png,Two.\n", "line 3", "'none.png' can't be read"),
        ("c.csv", 'image,caption\na.png,"One\n\nmore."\nb.png,\n', "line 5", "the caption is empty"),
        ("c.csv", "image,caption,split\na.png,1,train\na.png,2,val\n", "line 3", "'val' here and 'train' on line 2"),
        ("c.csv", "image,caption,split\na.png,One.,\n", "line 2", "unknown split ''"),
        ("c.csv", "image,caption,id\na.png,One.,1\na.png,Two.,2\n", "line 3", "id '2' here and '1' on line 2"),
        ("c.csv", "image,caption,id\na.png,One.,\n", "line 2", "the id is empty"),
        ("c.csv", "image,caption,id\na.png,One.,1\nb.png,Two.,1\n", "line 3", "id '1' was already given at line 2"),
        ("c.csv", "image,caption\na.png,One, two.\n", "line 2", "3 fields where the header has 2"),
        ("c.csv", 'image,caption\na.png,One.\nb.png,"Two.\n\n', "line 3", "not a valid table"),
        ("c.csv", "image,caption,splt\na.png,One.,val\n", "line 1", "unknown column 'splt' (did you mean 'split'?)"),
        ("c.csv", "image,split\na.png,train\n", "line 1", "column 'caption' is missing"),
        ("c.csv", "image,caption,image\n", "line 1", "column 'image' is there twice"),
        ("c.csv", "image,caption\n", "", "there are no images"),
        ("c.csv", "", "", "there are no images"),
        ("c.csv", "image,caption\n../b.png,One.\n", "line 2", "out of the image root"),
        ("c.csv", "image,caption\n ,One.\n", "line 2", "names no file"),
        ("c.csv", b"image,caption\na.png,caf\xe9.\n", "line 2", "byte 23 (0xe9) is not UTF-8"),
        ("c.csv", "a.png,One.\nb.png,Two.\n", "line 1", "'a.png,One.', is a row of an image, and no header"),
        ("c.txt", "a.png One.\n", "line 1", "columns 'image' and 'caption' are missing among 'a.png One.'"),
        ("c.csv", "bild,wort,wort\n", "line 1", "column 'wort' is there twice; columns 'image' and 'caption' are"),
        (
            "c.csv",
            "imge,captoin\n",
            "line 1",
            "column 'imge' (did you mean 'image'?); unknown column 'captoin' (did you",
        ),
        ("c.jsonl", '{"image": "a.png", "captions": []}\n{"image": "b.png",\n', "line 2 column 19", "not valid JSON"),
        ("c.jsonl", '\n["a.png"]', "line 2", "not a JSON object"),
        ("c.jsonl", '{"image": "a.png", "captoin": "One."}', "line 1", "unknown column 'captoin'"),
        ("c.jsonl", '{"image": "a.png"}', "line 1", "column 'caption' is missing among 'image'"),
        ("c.jsonl", '{"image": "a.png", "captions": 1}', "line 1", "'captions' must be a list"),
        ("c.jsonl", '{"image": [3], "captions": []}', "line 1", "'image' must be text"),
        ("c.jsonl", '{"image": "a.png", "captions": ["One.", ""]}', "line 1 captions[1]", "the caption is empty"),
        (
            "c.jsonl",
            '{"image": "a.png", "captions": [], "split": "val"}\n{"image": "b.png", "captions": []}',
            "line 2",
            "line 1 has a split",
        ),
        (
            "c.jsonl",
            '{"image": "a.png", "captions": [], "split": "val"}\n{"image": "a.png", "captions": [], "split": "test"}',
            "line 2",
            "has split 'test' here and 'val' on line 1",
        ),
    ],
)
def test_a_bad_captions_file_is_refused(root, name, text, place, words):
    error = refusal(folder, root, name, text)
    assert error.where == f"{root.parent / name} {place}".strip()
    assert words in error.what


def test_a_missing_captions_file_and_a_missing_root_are_refused(root):
    with pytest.raises(InputError, match=r"none\.json: the file can't be read"):
        run(images=root, captions=root / "none.json", format="karpathy", out=root.parent / "out")
    with pytest.raises(InputError, match="nowhere: the image root is not a folder"):
        run(images=root / "nowhere", captions=root / "none.json", format="karpathy", out=root.parent / "out")


OBJECTS = [{"box": [0, 0, 3, 3], "shape": "ring"}, {"box": [1, 1, 5, 4.5], "shape": "star"}]


def grounded(objects=OBJECTS, **phrase):
    phrase = {"start": 2, "end": 5, "object": 1, "kind": "shape", **phrase}
    return entry("a.png", objects=objects) | {"sentences": [{"raw": "A dog.", "phrases": [phrase]}]}


def half_grounded():
    image = grounded()
    return image | {"sentences": [*image["sentences"], {"raw": "A cat."}]}


def test_grounding_is_written_where_the_source_has_it(root):
    karpathy(root, [entry("b.png"), grounded()])
    items = read_grounding(root.parent / "out" / "grounding.jsonl")
    assert list(items) == ["a"]
    assert items["a"].boxes == ((0.0, 0.0, 3.0, 3.0), (1.0, 1.0, 5.0, 4.5))
    assert items["a"].labels == ({"shape": "ring"}, {"shape": "star"})
    assert items["a"].phrases == ((Phrase(2, 5, 1, "shape"),),)
    karpathy(root, [entry("b.png")])
    assert not (root.parent / "out" / "grounding.jsonl").exists()


@pytest.mark.parametrize(
    ("image", "row", "words"),
    [
        (grounded(end=7), "images[0].sentences[0].phrases[0]", "characters 2 to 7 are not in the caption"),
        (grounded(object=2), "images[0].sentences[0].phrases[0]", "not one of the image's 2 objects"),
        (grounded(words="dog"), "images[0].sentences[0].phrases[0]", "unknown key 'words'"),
        (grounded(objects="ring"), "images[0]", "'objects' must be a list"),
        (grounded(objects=None), "images[0]", "'objects' must be a list"),
        (grounded(objects=[{"shape": "ring"}]), "images[0].objects[0]", "must have a 'box'"),
        (grounded(objects=[{"box": [3, 0, 0, 3]}]), "images[0].objects[0]", "x1 <= x2"),
        (grounded(objects=[{"box": [0, 0, 3, 3], "shape": 1}]), "images[0].objects[0]", "in texts"),
        (half_grounded(), "images[0].sentences[1]", "'phrases' must be a list"),
    ],
)
def test_bad_grounding_is_refused(root, image, row, words):
    error = refusal(karpathy, root, [image])
    assert error.where == f"{root.parent / 'dataset.json'} {row}"
    assert words in error.what
