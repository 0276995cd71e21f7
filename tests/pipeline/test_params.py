"""params.yaml: the committed one is valid, and every mistake is named by its key, with what to write instead."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from manifests.errors import InputError
from pipeline.params import Params, read_params
from tests.pipeline.project import CHECKOUT

COMMITTED = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))


def changed(tmp_path: Path, key: str, value: Any) -> Path:
    """The committed parameters with the value at a dotted key set, or deleted where it is None."""
    params = copy.deepcopy(COMMITTED)
    *sections, last = key.split(".")
    place = params
    for section in sections:
        place = place[section]
    if value is None:
        del place[last]
    else:
        place[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    return path


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_params(path)
    assert caught.value.where.endswith(path.name) and caught.value.fix
    return str(caught.value)


def test_the_committed_file_is_valid() -> None:
    params = read_params(CHECKOUT / "params.yaml")
    assert isinstance(params, Params)
    assert {"demo"} <= set(params.datasets) and {"vsrn", "vsrn-selfalign"} <= set(params.runs)
    assert params.scenes.test >= 500
    assert params.scenes.seed != params.detector.seed


def test_selfalign_is_compared_with_the_same_base() -> None:
    base, aligned = (COMMITTED["runs"][name] for name in ("vsrn", "vsrn-selfalign"))
    kept = {name: aligned["losses"][name] for name in base["losses"]}
    assert {key: value for key, value in aligned.items() if key != "bag"} | {"losses": kept} == base
    assert aligned["losses"].keys() - kept.keys() == {"contrast", "lca", "cra", "word_region"}


def test_an_optional_set_is_turned_on_by_its_alias_and_stands_behind_the_other_runs(tmp_path: Path) -> None:
    text = (CHECKOUT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    usual = read_params(CHECKOUT / "params.yaml")
    assert usual.optional
    for key, added in usual.optional.items():
        assert not added.keys() & usual.runs.keys()
        path.write_text(text.replace("  <<: []", f"  <<: [*{key}]"), encoding="utf-8")
        assert list(read_params(path).runs) == [*usual.runs, *added]
        for name in added:
            with pytest.raises(InputError, match=rf"optional set {key}.*add \*{key} to the list"):
                usual.run(name)
            assert read_params(path).run(name).dataset in usual.datasets


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("scenez", "scenes"),
        ("scenes.tran", "train"),
        ("datasets.demo.region", "regions"),
        ("datasets.demo.source.image", "images"),
        ("datasets.demo.regions.detector.shortes", "shortest"),
        ("datasets.demo.regions.selection.max_box", "max_boxes"),
        ("datasets.demo.tokens.mincount", "min_count"),
        ("runs.vsrn.epoch", "epochs"),
        ("runs.vsrn.base.dims", "dim"),
        ("runs.vsrn-selfalign.losses.lca.num_concept", "num_concepts"),
        ("report.example", "examples"),
        ("packs.demo.images_per_shrd", "images_per_shard"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    assert f"{key}: unknown key (did you mean {nearest!r}?)" in message(changed(tmp_path, key, 1))


def test_an_unknown_key_like_no_other_has_no_hint(tmp_path: Path) -> None:
    text = message(changed(tmp_path, "runs.vsrn.zzzzzz", 1))
    assert "runs.vsrn.zzzzzz: unknown key" in text and "did you mean" not in text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("scenes.train", "many", "valid integer"),
        ("runs.vsrn.epochs", 0, "greater than or equal to 1"),
        ("runs.vsrn.learning_rate", [1], "valid number"),
        ("runs.vsrn.base", "vsrn", "mapping"),
        ("datasets.demo.regions.unreadable", "ignore", "'stop' or 'skip'"),
        ("datasets.demo.regions.detector.shortest", "big", "valid integer"),
        ("datasets.demo.regions.selection.min_boxes", 99, "min_boxes 99 is above max_boxes"),
        ("runs.vsrn.dataset", None, "field required"),
        ("datasets", {}, "at least 1 item"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    text = message(changed(tmp_path, key, value))
    place = key.removesuffix(".min_boxes")  # a rule of two keys names their section
    assert f"{place}: " in text and expected in text


IMPORTED = {"format": "scan", "images": "/data/scan", "captions": "/data/scan", "watch": "/data/scan"}


def test_an_imported_set_has_its_own_regions(tmp_path: Path) -> None:
    path = changed(tmp_path, "datasets.demo.source", IMPORTED)
    assert "with source.format scan, regions must have no detector and no selection" in message(path)
    path = changed(tmp_path, "datasets.demo.regions", {"boxes": "xyxy"})
    assert "with source.format karpathy, regions must have a detector" in message(path)
    params = copy.deepcopy(COMMITTED)
    params["datasets"]["demo"] |= {"source": IMPORTED, "regions": {"boxes": "xyxy"}}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    assert read_params(path).datasets["demo"].regions.boxes == "xyxy"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("regions.boxs", "xyxy", "regions.boxs: unknown key (did you mean 'boxes'?)"),
        ("regions.boxes", "corners", "regions.boxes: input should be 'xyxy'"),
        ("source.mising", "skip", "source.mising: unknown key (did you mean 'missing'?)"),
        ("source.duplicates", "allow", "source: value error, `duplicates` is not for format scan"),
        ("source.format", "scam", "source.format: no format 'scam' (did you mean 'scan'?): choose one of"),
    ],
)
def test_mistakes_of_an_imported_set_are_named_by_their_key(
    tmp_path: Path, key: str, value: str, expected: str
) -> None:
    params = copy.deepcopy(COMMITTED)
    params["datasets"]["demo"] |= {"source": dict(IMPORTED), "regions": {}}
    section, name = key.split(".")
    params["datasets"]["demo"][section][name] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    assert f"datasets.demo.{expected}" in message(path)


def test_only_an_imported_set_has_pictures_apart(tmp_path: Path) -> None:
    path = changed(tmp_path, "datasets.demo.source.pictures", "/data/images")
    assert "`pictures` is not for format karpathy" in message(path)


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    path = changed(tmp_path, "scenes.train", "many")
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["report"]["retreived"] = 5
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    text = message(path)
    assert "scenes.train" in text and "report.retreived" in text


def test_a_run_on_an_unknown_data_set_names_the_nearest(tmp_path: Path) -> None:
    text = message(changed(tmp_path, "runs.vsrn.dataset", "dmo"))
    assert "runs.vsrn.dataset" in text and "'dmo'" in text and "did you mean 'demo'?" in text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "text_features",
            {"demos": {"model": "x"}},
            "demos is none of the data sets (did you mean 'demo'?)",
        ),
        ("text_features", {"demo": {"model": "x"}}, "text_features.demo needs word pieces, and datasets.demo.tokens"),
        ("text_features", {"demo": {"modle": "x"}}, "text_features.demo.modle: unknown key (did you mean 'model'?)"),
        ("runs.vsrn.text", {"reads": "tokens", "encoder": {"model": "x"}}, "runs.vsrn.text needs word pieces"),
        ("runs.vsrn.text", {"reads": "text_features", "encoder": {"model": "x"}}, "leave encoder out"),
    ],
)
def test_text_encoders_need_what_they_read(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    assert expected in message(changed(tmp_path, key, value))


def test_a_run_needs_the_text_features_that_it_reads(tmp_path: Path) -> None:
    path = changed(tmp_path, "runs.vsrn.text", {"reads": "text_features"})
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["datasets"]["demo"]["tokens"]["tokenizer"] = "bert"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    assert "runs.vsrn.text reads text_features, and text_features has no 'demo'" in message(path)
    params["text_features"] = {"demo": {"model": "bert"}}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    assert read_params(path).text_feature("demo").layer == -1


BUILT_IN = {"images": {"name": "regions-mean"}, "captions": {"name": "lsa"}}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("teachers", {"demos": BUILT_IN}, "teachers.demos is none of the data sets (did you mean 'demo'?)"),
        ("teachers", {"demo": BUILT_IN | {"image": {}}}, "teachers.demo.image: unknown key (did you mean 'images'?)"),
        (
            "teachers",
            {"demo": BUILT_IN | {"images": {"model": "a/vit", "reads": "manifest", "pooling": "cls"}}},
            "images has no `name`: write images: {name: vision, model: a/vit, pooling: cls}",
        ),
        (
            "teachers",
            {"demo": BUILT_IN | {"captions": {"model": "lsa", "dim": 8}}},
            "captions has no `name`: write captions: {name: lsa, dim: 8}",
        ),
        (
            "teachers",
            {"demo": BUILT_IN | {"captions": {"name": "regions-mean"}}},
            "the teacher regions-mean finds images alike, not captions",
        ),
        (
            "teachers",
            {"demo": BUILT_IN | {"captions": {"name": "isa"}}},
            "teachers.demo.captions: no teacher 'isa' (did you mean 'lsa'?)",
        ),
        ("runs.vsrn.labels", None, "runs.vsrn.labels: field required"),
        ("runs.vsrn.labels", "teachers", "csa and usa need `labels: teachers`, and nothing else does"),
        ("runs.vsrn.losses", {"csa": {}}, "losses.csa needs `labels: teachers`"),
        ("runs.vsrn.losses", {"csa": {"wait": 1}}, "runs.vsrn.losses.csa.wait: unknown key (did you mean 'weight'?)"),
        ("runs.vsrn.losses", {"csaa": {}}, "no loss 'csaa' (did you mean 'csa'?)"),
        ("runs.vsrn.losses", {}, "a run without losses learns nothing"),
        (
            "runs.vsrn.losses",
            {"cusa_contrast": {"temperature": 0.2}},
            "runs.vsrn.losses.cusa_contrast: value error, temperature 0.2 must lie within",
        ),
        ("runs.vsrn.losses", {"usa": {"bounds": [0.9, 0.1]}}, "losses.usa: value error, bounds are [0.9, 0.1]"),
        ("runs.vsrn.losses", {"csa": {"bounds": [0.5, 0.5]}}, "losses.csa: value error, bounds are [0.5, 0.5]"),
    ],
)
def test_soft_labels_need_their_teachers(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    assert expected in message(changed(tmp_path, key, value))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("packs", {"demos": {}}, "packs.demos is none of the data sets (did you mean 'demo'?)"),
        ("datasets.demo.pack", {}, "datasets.demo.pack: packs are a section of their own. Fix: `selfalign migrate`"),
    ],
)
def test_packs_are_of_data_sets(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    assert expected in message(changed(tmp_path, key, value))


def test_a_run_needs_the_teachers_that_it_learns_from(tmp_path: Path) -> None:
    params = copy.deepcopy(COMMITTED)
    params["runs"]["vsrn"] |= {"labels": "teachers", "losses": {"triplet": {}, "csa": {}}}
    params["teachers"] = {}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    assert "runs.vsrn.labels are of teachers, and teachers has no 'demo'" in message(path)
    params["teachers"] = {"demo": BUILT_IN}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    assert read_params(path).teacher("demo").captions.dim == 128
    params["teachers"]["demo"] = BUILT_IN | {"images": {"name": "vision", "model": "a/vit"}}
    params["datasets"]["demo"] |= {"source": IMPORTED, "regions": {"boxes": "xyxy"}}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    assert "teachers.demo.images reads pictures, and datasets.demo was imported" in message(path)


def test_the_demos_runs_with_cusa_add_it_and_nothing_else() -> None:
    params = read_params(CHECKOUT / "params.yaml")
    for base in ("vsrn", "vsrn-selfalign"):
        ours = params.optional["cusa"][f"{base}-cusa"]
        added = {"csa", "cusa_contrast", "usa"}  # CUSA has a contrastive term of its own
        assert added <= ours.losses.keys() and ours.labels == "teachers"
        usual = params.runs[base]
        kept = {name: loss for name, loss in usual.losses.items() if name != "contrast"}
        assert {name: loss for name, loss in ours.losses.items() if name not in added} == kept
        assert ours.model_copy(update={"losses": kept, "labels": "manifest"}) == usual.model_copy(
            update={"losses": kept}
        )


def test_an_old_run_is_answered_with_what_to_write(tmp_path: Path) -> None:
    """The losses that a run had in many places, and the block that means the same."""
    old = copy.deepcopy(COMMITTED["runs"]["vsrn"])
    old["base"] |= {"caption_decoder": {"dim": 64}}
    old |= {
        "triplet": old.pop("losses")["triplet"],
        "selfalign": {"concept": {"num_concepts": 9}, "bag": {"codebook": False}},
        "aladin": {"alignment": {"over_words": "mean"}},
    }
    text = message(changed(tmp_path, "runs.old", old))
    assert "runs.old" in text and "aren't in one map" in text
    block = yaml.safe_load(text[text.index("runs.old: {") + len("runs.old: ") :].rstrip("."))
    run = {key: value for key, value in old.items() if key not in ("triplet", "selfalign", "aladin")} | block
    found = read_params(changed(tmp_path, "runs.new", run)).run("new")
    assert found.losses.keys() == {"alignment", "generation", "lca", "triplet"} and found.bag and not found.bag.codebook
    assert found.losses["lca"].num_concepts == 9 and found.losses["alignment"].aggregation == "MrAVGw"


@pytest.mark.parametrize("content", [b"scenes: [1\nrest: 2", b"scenes: \xff\xfe"], ids=["broken", "not UTF-8"])
def test_text_that_is_not_yaml_is_named_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert "not YAML" in message(path)


@pytest.mark.parametrize("content", ["", "- a list", "just text"])
def test_yaml_without_sections_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    assert "dictionary" in message(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = message(path)
    assert str(path) in text and "project's folder" in text


def test_names_of_runs_and_data_sets_are_looked_up_with_a_hint() -> None:
    params = read_params(CHECKOUT / "params.yaml")
    with pytest.raises(InputError, match="runs has no 'vsnr'.*did you mean 'vsrn'"):
        params.run("vsnr")
    with pytest.raises(InputError, match="datasets has no 'demos'.*did you mean 'demo'"):
        params.dataset("demos")


def test_a_data_set_is_made_here_or_brought_here(tmp_path: Path) -> None:
    text = message(changed(tmp_path, "shared", {"demo": {}}))
    assert "'demo' is in datasets and in shared" in text
    path = changed(tmp_path, "shared", {"theirs": {}, "ours": {"images": "/pictures"}})
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["runs"]["vsrn"]["dataset"] = "theirs"
    params["ensembles"] = {}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    read = read_params(path)
    assert read.image_roots["ours"] == Path("/pictures") and {"demo", "theirs"} <= set(read.image_roots)
    assert "runs.vsrn.dataset is 'theirz'" in message(_renamed(path, "theirs", "theirz"))


def _renamed(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f"dataset: {old}", f"dataset: {new}"), encoding="utf-8")
    return path


def test_an_ensemble_is_of_known_runs_on_one_data_set(tmp_path: Path) -> None:
    assert read_params(CHECKOUT / "params.yaml").ensemble("vsrn-both") == ["vsrn", "vsrn-selfalign"]
    text = message(changed(tmp_path, "ensembles.vsrn-both", ["vsrn", "vsnr-selfalign"]))
    assert "ensembles.vsrn-both" in text and "did you mean 'vsrn-selfalign'?" in text
    assert "at least 2 items" in message(changed(tmp_path, "ensembles.vsrn-both", ["vsrn"]))
    path = changed(tmp_path, "runs.other", COMMITTED["runs"]["vsrn"] | {"dataset": "second"})
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["datasets"]["second"] = params["datasets"]["demo"]
    params["ensembles"] = {"mixed": ["vsrn", "other"]}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    assert "ensembles.mixed has runs on several data sets (demo, second)" in message(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("run", "vsrn-selfaling", "did you mean 'vsrn-selfalign'?"),
        ("reads", "text_features", "write reads: tokens"),
        ("dataset", "other", "write dataset: demo"),
        ("vary", {"losses.lca.num_concept": [1]}, "did you mean 'num_concepts'?"),
        ("vary", {"losses.lca.num_concepts": [0]}, "num_concepts: Input should be greater than or equal to 1"),
        ("vary", {"labels": ["manifest", "teachers"]}, "`labels: teachers`"),
        ("changes", {"base.dims": 32}, "did you mean 'dim'?"),
    ],
)
def test_a_study_that_can_not_be_is_named(tmp_path: Path, key: str, value: Any, said: str) -> None:
    text = message(changed(tmp_path, f"studies.codebook-size.{key}", value))
    assert "studies.codebook-size" in text and said in text


@pytest.mark.parametrize("key", ["runs.vsrn.losses", "evaluate.metrics"])
def test_a_name_of_a_part_that_is_no_text_is_one_line(tmp_path: Path, key: str) -> None:
    assert "1 is no name of a" in message(changed(tmp_path, key, {1: {}}))
