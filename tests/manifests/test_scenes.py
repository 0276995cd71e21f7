"""The demo's scenes: pictures hold what the truth says, captions say what is true, and two runs give equal bytes."""

import json
import re
from math import hypot

import numpy as np
import pytest
from pydantic import ValidationError

from demo.scenes.describing import PARTS_OF_SPEECH, RELATIONS, WORDS, describe
from demo.scenes.drawing import COLOURS, SHAPES, SIZES, TEXTURES, draw_scene
from demo.scenes.settings import SceneSettings
from demo.scenes.stage import run
from manifests.files import sha256
from manifests.grounding import read_grounding
from manifests.manifest import run as run_manifest
from manifests.settings import DatasetSource
from manifests.tables import Manifest


@pytest.fixture(scope="module")
def scenes():
    """150 (pixels, scene, captions)."""
    made = []
    for number in range(150):
        rng = np.random.default_rng([5, number])
        pixels, scene = draw_scene(rng)
        made.append((pixels, scene, describe(rng, scene)))
    return made


def _coloured(pixels):
    """Where a picture is as strongly coloured as only objects are, bool [S, S]."""
    return np.ptp(pixels.astype(int), axis=2) > 90


def test_boxes_hold_all_that_is_drawn_and_no_more(scenes):
    for pixels, scene, _ in scenes:
        drawn = _coloured(pixels)
        for item in scene.objects:
            x1, y1, x2, y2 = map(int, item.box)
            assert 0 <= x1 < x2 <= scene.side and 0 <= y1 < y2 <= scene.side
            inside = drawn[y1:y2, x1:x2]
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            slack = 3 if item.texture == "plain" else 7  # tips and light stripes are weakly coloured
            assert rows[0] <= slack and len(inside) - 1 - rows[-1] <= slack
            assert columns[0] <= slack and inside.shape[1] - 1 - columns[-1] <= slack
            drawn[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        assert not drawn.any()


def test_objects_do_not_overlap(scenes):
    for _, scene, _ in scenes:
        boxes = [item.box for item in scene.objects]
        for i, a in enumerate(boxes):
            assert all(a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for b in boxes[:i])


def test_an_object_has_its_colour_and_size(scenes):
    hue = {"red": 0, "orange": 27, "yellow": 47, "green": 140, "blue": 217, "purple": 273}
    for pixels, scene, _ in scenes:
        for item in scene.objects:
            x1, y1, x2, y2 = map(int, item.box)
            patch = pixels[y1:y2, x1:x2][_coloured(pixels)[y1:y2, x1:x2]].astype(float)
            r, g, b = np.median(patch, axis=0)
            angle = np.degrees(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)) % 360
            nearest = min(hue, key=lambda name: abs((angle - hue[name] + 180) % 360 - 180))
            assert nearest == item.colour
            assert (max(x2 - x1, y2 - y1) > 0.21 * scene.side) == (item.size == "large")


def test_every_attribute_and_count_occurs(scenes):
    objects = [item for _, scene, _ in scenes for item in scene.objects]
    for kind, values in (("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES), ("size", SIZES)):
        assert {getattr(item, kind) for item in objects} == set(values) == set(WORDS[kind].values())
    assert {len(scene.objects) for _, scene, _ in scenes} == {2, 3, 4, 5, 6}


def test_a_generator_decides_the_scene():
    first, second, other = (draw_scene(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first[0], second[0]) and first[1] == second[1]
    assert first[1] != other[1]
    assert first[0].dtype == np.uint8 and first[0].shape == (160, 160, 3)


def test_size_and_number_of_objects_can_be_chosen():
    pixels, scene = draw_scene(np.random.default_rng(0), size=96, min_objects=8, max_objects=8)
    assert pixels.shape == (96, 96, 3) and len(scene.objects) == 8


def test_every_word_said_of_an_object_is_true(scenes):
    for _, scene, captions in scenes:
        for caption in captions:
            assert caption.phrases
            for phrase in caption.phrases:
                word = caption.text[phrase.start : phrase.end].lower()
                assert WORDS[phrase.kind][word] == getattr(scene.objects[phrase.object], phrase.kind)


def test_every_attribute_word_is_recorded(scenes):
    known = {word for words in WORDS.values() for word in words}
    for _, _, captions in scenes:
        for caption in captions:
            said = [match.span() for match in re.finditer("[a-z]+", caption.text, re.I) if match[0].lower() in known]
            assert said == [(phrase.start, phrase.end) for phrase in caption.phrases]


def _holds(relation, a, b, side):
    """The relation of box `a` to box `b`, judged by the boxes alone."""
    gap = hypot(max(a[0] - b[2], b[0] - a[2], 0), max(a[1] - b[3], b[1] - a[3], 0))
    return {
        "left": a[2] <= b[0],
        "right": a[0] >= b[2],
        "above": a[3] <= b[1],
        "below": a[1] >= b[3],
        "near": gap <= 0.1 * side,
    }[relation]


_SAID = {
    "to the left of": "left",
    "on the left of": "left",
    "to the right of": "right",
    "on the right of": "right",
    "above": "above",
    "over": "above",
    "below": "below",
    "under": "below",
    "beneath": "below",
    "near": "near",
    "next to": "near",
    "close to": "near",
    "beside": "near",
}
_ITS = {"left": "its left", "right": "its right", "above": "(?:above|over) it", "below": "(?:below|beneath) it"}


def test_every_way_of_saying_a_relation_is_checked_below():
    assert {way: relation for relation, ways in RELATIONS.items() for way in ways} == _SAID


def test_relations_are_true_of_the_boxes(scenes):
    checked = 0
    ways = "|".join(sorted(_SAID, key=len, reverse=True))
    for _, scene, captions in scenes:
        for caption in captions:
            objects = list(dict.fromkeys(phrase.object for phrase in caption.phrases))
            boxes = [scene.objects[index].box for index in objects]
            text = caption.text.lower()
            if len(boxes) != 2 or "between" in text:
                continue
            for name, pattern in _ITS.items():
                if " has " in text and re.search(f"{pattern}\\.$", text):
                    assert _holds(name, boxes[1], boxes[0], scene.side), text
                    checked += 1
            found = re.search(f"\\b({ways}) an? ", text)
            if found:
                front = found.start() == 0
                assert _holds(_SAID[found[1]], boxes[front], boxes[not front], scene.side), text
                checked += 1
    assert checked > 200


def test_relations_of_three_objects_are_true(scenes):
    checked = 0
    ways = "|".join(sorted(_SAID, key=len, reverse=True))
    for _, scene, captions in scenes:
        for caption in captions:
            boxes = [scene.objects[k].box for k in dict.fromkeys(phrase.object for phrase in caption.phrases)]
            said = [_SAID[way] for way in re.findall(f"\\b({ways}) (?:an?|the) ", caption.text)]
            if len(boxes) == 3 and len(said) == 2:
                again = re.search(r" the (\w+)\.$", caption.text)
                assert _holds(said[0], boxes[0], boxes[1], scene.side), caption.text
                pair = (boxes[2], boxes[1]) if again and " is " in caption.text.split(",")[-1] else (boxes[0], boxes[2])
                assert _holds(said[1], *pair, scene.side), caption.text
                checked += 1
    assert checked > 50


def test_places_and_between_are_true_of_the_boxes(scenes):
    checked = 0
    for _, scene, captions in scenes:
        for caption in captions:
            text = caption.text.lower()
            centres = [
                ((box[0] + box[2]) / 2 / scene.side, (box[1] + box[3]) / 2 / scene.side)
                for box in (scene.objects[k].box for k in dict.fromkeys(phrase.object for phrase in caption.phrases))
            ]
            if "of the picture" in text:
                (x, y), place = centres[0], re.search("(?:in|at|on) the (.*) of the picture", text)[1]
                assert ("left" in place) == (x < 1 / 3) and ("right" in place) == (x >= 2 / 3)
                assert ("top" in place) == (y < 1 / 3) and ("bottom" in place) == (y >= 2 / 3)
                checked += 1
            if "between" in text:
                middle, a, b = centres[2:] + centres[:2] if text.startswith("between") else centres
                assert hypot(middle[0] - a[0], middle[1] - a[1]) < hypot(a[0] - b[0], a[1] - b[1])
                assert hypot(middle[0] - b[0], middle[1] - b[1]) < hypot(a[0] - b[0], a[1] - b[1])
                checked += 1
    assert checked > 60


def test_captions_read_like_sentences(scenes):
    for _, _, captions in scenes:
        assert len({caption.text for caption in captions}) == 5
        for caption in captions:
            text = caption.text
            assert re.fullmatch(r"[A-Z][a-z]*(,? [a-z]+)*\.", text), text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.I), text
            assert not re.search(r"\b(\w+) \1\b", text, re.I), text


def test_every_word_has_a_part_of_speech(scenes):
    said = {word for *_, captions in scenes for c in captions for word in re.findall(r"[a-z]+|[.,]", c.text.lower())}
    assert said <= set(PARTS_OF_SPEECH)
    assert set(PARTS_OF_SPEECH.values()) <= {
        "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "NOUN", "PRON", "PUNCT", "SCONJ", "VERB",
    }  # fmt: skip
    assert [PARTS_OF_SPEECH[word] for word in ("ring", "striped", "stripes", "big", "sits", "above")] == [
        "NOUN", "ADJ", "NOUN", "ADJ", "VERB", "ADP",
    ]  # fmt: skip


def test_captions_mostly_tell_a_scene_from_others(scenes):
    def fits(attributes, objects):
        """Whether each wanted dict of attributes finds an object of its own."""
        if not attributes:
            return True
        return any(
            all(getattr(item, kind) == value for kind, value in attributes[0].items())
            and fits(attributes[1:], objects[:k] + objects[k + 1 :])
            for k, item in enumerate(objects)
        )

    matches = []
    for _, _, captions in scenes:
        for caption in captions:
            attributes = {}
            for phrase in caption.phrases:
                word = caption.text[phrase.start : phrase.end].lower()
                attributes.setdefault(phrase.object, {})[phrase.kind] = WORDS[phrase.kind][word]
            matches.append(sum(fits(list(attributes.values()), scene.objects) for _, scene, _ in scenes))
    assert min(matches) >= 1
    assert np.mean(np.array(matches) == 1) > 0.6


SETTINGS = SceneSettings(seed=1, train=6, val=2, test=3, size=64)


def _hashes(folder):
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_stage_is_deterministic_and_replaces_what_was_there(tmp_path):
    run(settings=SETTINGS, out=tmp_path / "a")
    (tmp_path / "b" / "images").mkdir(parents=True)
    (tmp_path / "b" / "images" / "old.png").write_text("old")
    run(settings=SETTINGS, out=tmp_path / "b")
    hashes = _hashes(tmp_path / "a")
    assert hashes == _hashes(tmp_path / "b")
    assert len(hashes) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_worker_processes_change_nothing_and_a_scene_depends_on_its_number_alone(tmp_path):
    run(settings=SETTINGS, out=tmp_path / "few")
    run(settings=SETTINGS.model_copy(update={"train": 110}), out=tmp_path / "many")
    few, many = _hashes(tmp_path / "few" / "images"), _hashes(tmp_path / "many" / "images")
    assert few.items() <= many.items()
    assert len(many) == 115


def test_another_seed_gives_other_scenes(tmp_path):
    run(settings=SETTINGS, out=tmp_path / "a")
    run(settings=SETTINGS.model_copy(update={"seed": 2}), out=tmp_path / "b")
    assert not set(_hashes(tmp_path / "a").values()) & set(_hashes(tmp_path / "b").values())


def test_scenes_become_a_manifest_with_grounding(tmp_path):
    run(settings=SETTINGS, out=tmp_path / "scenes")
    run_manifest(
        images=tmp_path / "scenes" / "images",
        captions=tmp_path / "scenes" / "captions.json",
        format="karpathy",
        out=tmp_path / "manifest",
    )
    rows = list(Manifest.open(tmp_path / "manifest").captioned)
    grounding = read_grounding(tmp_path / "manifest" / "grounding.jsonl")
    assert [row.split for row in rows] == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
    assert [row.id for row in rows] == [f"{number:06d}" for number in range(11)] == list(grounding)
    source = json.loads((tmp_path / "scenes" / "captions.json").read_text())["images"]
    for row, image in zip(rows, source, strict=True):
        assert (row.width, row.height) == (64, 64)
        item = grounding[row.id]
        assert [{"box": list(b), **label} for b, label in zip(item.boxes, item.labels, strict=True)] == image["objects"]
        for text, phrases in zip(row.captions, item.phrases, strict=True):
            for phrase in phrases:
                said = WORDS[phrase.kind][text[phrase.start : phrase.end].lower()]
                assert said == item.labels[phrase.object][phrase.kind]


FOLDER = {"format": "folder", "images": "i", "captions": "c"}


@pytest.mark.parametrize(
    ("model", "values", "words"),
    [
        (SceneSettings, {"sede": 1}, "sede"),
        (SceneSettings, {"min_objects": 5, "max_objects": 4}, "must not be above"),
        (SceneSettings, {"train": 0}, "train"),
        (DatasetSource, {**FOLDER, "format": "cocoa"}, "format"),
        (DatasetSource, {"format": "folder", "images": "i"}, "captions"),
        (DatasetSource, {**FOLDER, "val_fraction": 0.6, "test_fraction": 0.4}, "below 1"),
    ],
)
def test_settings_refuse_what_makes_no_sense(model, values, words):
    with pytest.raises(ValidationError, match=words):
        model(**values)
