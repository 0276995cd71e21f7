"""Names and keys of params.yaml as they are written: refused with their line, all of them at once."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from manifests.errors import InputError
from pipeline import strict_yaml
from pipeline.cli import main
from pipeline.params import read_params
from tests.pipeline.project import CHECKOUT

TEXT = (CHECKOUT / "params.yaml").read_text(encoding="utf-8")
SECTIONS = {  # a line of each section below which a new name can be written
    "datasets": "datasets:\n",
    "teachers": "teachers: # what uni-modal models see, for runs with csa and usa; docs/cusa.md\n",
    "optional.cusa": "  cusa: &cusa\n",
    "runs": "runs:\n",
    "ensembles": "ensembles: # runs of one data set whose scores are averaged\n",
    "studies": "studies: # runs that differ in some keys and seeds; here small, to be seen rather than believed\n",
}
BAD = ["my data", "../up", "coco.v2", "2024", "on", "0x10", "1_000", "~", "null", "é", "1e3", "2024-01-01", '"no"']


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_params(path)
    assert caught.value.where == str(path) and caught.value.fix
    return str(caught.value)


def added(section: str, name: str) -> tuple[str, int]:
    """The committed file with a name in a section, and the line where it stands."""
    before, heading, after = TEXT.partition(SECTIONS[section])
    assert heading
    line = (before + heading).count("\n") + 1
    return f"{before}{heading}{'    ' if section.startswith('optional') else '  '}{name}: {{}}\n{after}", line


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_quoted_as_it_is_written_with_its_line(tmp_path: Path, name: str) -> None:
    text, line = added("datasets", name)
    message = refused(tmp_path, text)
    assert re.search(
        rf"datasets: '{re.escape(name.strip(chr(34)))}' is (no name|a word of YAML's own) \(line {line}\)", message
    )
    assert "a name has letters (A to Z, a to z), digits, - and _, and begins with a letter" in message


@pytest.mark.parametrize("name", ["coco.v2", "my data", "2024", "vsrn-m0.2"])
@pytest.mark.parametrize("command", ["manifest", "regions", "tokens"])
def test_a_stage_of_a_bad_name_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    """With the rest of its entry as it should be."""
    monkeypatch.chdir(tmp_path)
    source = "{format: butd-tsv, images: regions.tsv, captions: captions.json, watch: regions.tsv}"
    entry = f"  {name}:\n    source: {source}\n    regions: {{}}\n    tokens: {{language: blank_en, min_count: 1}}\n"
    before, heading, after = TEXT.partition(SECTIONS["datasets"])
    Path("params.yaml").write_text(f"{before}{heading}{entry}    pack: {{}}\n{after}", encoding="utf-8")
    done = CliRunner().invoke(main, [command, name], catch_exceptions=False)
    assert done.exit_code == 1 and done.output.count("\n") == 1
    assert f"datasets: '{name}' is no name (line " in done.output and "begins with a letter" in done.output


@pytest.mark.parametrize("section", SECTIONS)
def test_names_of_every_section_are_checked(tmp_path: Path, section: str) -> None:
    text, line = added(section, "vsrn-m0.2")
    assert f"{section}: 'vsrn-m0.2' is no name (line {line})" in refused(tmp_path, text)


def test_names_of_shared_sets_and_text_features_are_checked(tmp_path: Path) -> None:
    message = refused(
        tmp_path, TEXT.replace("text_features: {}", "text_features: {a b: {}}\nshared: {2024: {}, on: {}}")
    )
    for name in ("text_features: 'a b'", "shared: '2024'", "shared: 'on'"):
        assert name in message


def test_all_bad_names_are_listed_together_a_run_of_a_set_that_is_on_once(tmp_path: Path) -> None:
    text, _ = added("datasets", "my data")
    text = text.replace("    vsrn-cusa: &vsrn-cusa", "    vsrn.cusa: &vsrn-cusa").replace("<<: []", "<<: [*cusa]")
    message = refused(tmp_path, text.replace("  vsrn-both:", "  2:"))
    assert all(message.count(f"'{name}' is no name") == 1 for name in ("my data", "vsrn.cusa", "2"))


@pytest.mark.parametrize(
    ("section", "name", "other"),
    [
        ("datasets", "Demo", "datasets: 'demo'"),
        ("runs", "VSRN", "runs: 'vsrn'"),
        ("runs", "Vsrn-Cusa", "optional.cusa"),
        ("ensembles", "VSRN-both", "ensembles"),
        ("studies", "Codebook-size", "studies"),
    ],
)
def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path, section: str, name: str, other: str) -> None:
    text, line = added(section, name)
    message = refused(tmp_path, text)
    assert "differ in case alone" in message and f"'{name}'" in message and f"line {line}" in message
    assert other.partition(":")[0] in message


def test_a_shared_set_and_one_made_here_differ_in_more_than_case(tmp_path: Path) -> None:
    assert "differ in case alone" in refused(tmp_path, TEXT + "\nshared: {DEMO: {}}\n")


def test_a_data_set_does_not_share_the_demos_pictures(tmp_path: Path) -> None:
    text, line = added("datasets", "Scenes")
    assert f"'Scenes' (line {line}) would share data/scenes" in refused(tmp_path, text)


def test_a_key_given_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    text = TEXT.replace("  train: 2000\n", "  train: 2000\n  train: 20\n") + "report: {examples: 1}\n"
    message = refused(tmp_path, text)
    lines = text.splitlines()
    first = lines.index("  train: 2000") + 1
    assert f"key 'train' is on line {first} and again on line {first + 1}" in message
    assert f"key 'report' is on line {lines.index('report:') + 1} and again on line {len(lines)}" in message


def test_duplicates_and_bad_names_are_listed_together(tmp_path: Path) -> None:
    text, _ = added("datasets", "demo")
    message = refused(tmp_path, text.replace("  vsrn-both:", "  both.2:"))
    assert "key 'demo' is on line" in message and "'both.2' is no name" in message


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2\n",
        "a: {b: 1, 'b': 2}\n",
        "a: [{b: 1, b: 2}]\n",
        "on: 1\nyes: 2\n",
        "1: a\n0x1: b\n",
        "a:\n  <<: {b: 1}\n  <<: {c: 1}\n",
        "a: {<<: {b: 1, b: 2}}\n",
        "&a a: 1\n*a : 2\n",
    ],
)
def test_keys_that_are_one_are_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="is on line 1|is on line 2"):
        strict_yaml.load(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n",
        "a: &a {x: 1}\nb: &b {x: 2}\nc: {<<: [*a, *b], y: 1}\nd: {<<: [*b, *a]}\n",
        "a: &a {x: {y: 1}}\nb: &b {<<: *a}\nc: {<<: *b, x: {z: 1}}\n",
        "a: {b: 1}\nc: {b: 1}\n",
        "",
        TEXT,
    ],
)
def test_what_was_right_is_read_as_before(text: str) -> None:
    assert strict_yaml.load(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["a: 2024-13-45", "a: " + "[" * 5000, "? [a]\n: 1", "=: 1", "a: &a {b: *c}"])
def test_what_pyyaml_can_not_read_is_one_line(tmp_path: Path, text: str) -> None:
    message = refused(tmp_path, text)
    assert "not YAML" in message and "\n" not in message


def test_dvc_reads_the_names_that_are_allowed_as_they_are_written(tmp_path: Path) -> None:
    from dvc.utils.serialize import load_yaml

    shutil.copy(CHECKOUT / "params.yaml", tmp_path / "params.yaml")
    read = load_yaml(str(tmp_path / "params.yaml"))
    ours = read_params(tmp_path / "params.yaml")
    assert set(read["datasets"]) == set(ours.datasets) and set(read["runs"]) == set(ours.runs)
