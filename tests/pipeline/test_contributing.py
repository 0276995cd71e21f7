"""What CONTRIBUTING.md, CITATION.cff and CHANGELOG.md say holds."""

import re
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import train.losses
from tests.pipeline.project import CHECKOUT
from tests.train.test_models import region_batch, settings, word_batch
from train.encoding import similarity
from train.model import build_model

PAGE = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
VERSION = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", PAGE, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


def test_the_loss_of_the_page_trains_from_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,), (run,) = blocks("python"), blocks("yaml")
    (tmp_path / "level.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(train.losses, "__path__", [*train.losses.__path__, str(tmp_path)])
    losses = yaml.safe_load(run)["vsrn-level"]["losses"]
    assert losses["level"] == {"margin": 0.5, "weight": 100}
    try:
        torch.manual_seed(0)
        model = build_model(settings("vsrn", losses), feature_dim=12, vocabulary_size=20)
        pairs = model(region_batch([5, 1, 9], 9), word_batch([5, 1, 9], 9))
        terms = model.terms(pairs, torch.arange(3), 0)
        scores = similarity(pairs.images, pairs.captions).diagonal()
        torch.testing.assert_close(terms["level"], 100 * (scores - 0.5).square().mean())
        terms["level"].backward()
        assert any(parameter.grad is not None for parameter in model.base.parameters())
    finally:
        train.losses.LOSSES.pop("level", None)
        sys.modules.pop("train.losses.level", None)


def test_files_to_copy_and_their_tests_are_there() -> None:
    rows = re.findall(r"^\| ([a-z ]+) \| `(\S+)` \| `(\S+)/` \| `(\S+)` \|$", PAGE, re.MULTILINE)
    assert {kind for kind, *_ in rows} > {"detector", "base", "loss", "metric"} and len(rows) == 7
    for _, file, folder, test in rows:
        text = (CHECKOUT / file).read_text(encoding="utf-8")
        assert re.search(r"^@[A-Z]+\.add\(", text, re.MULTILINE) and Path(file).parent == Path(folder)
        assert (CHECKOUT / test).is_file()


def test_commands_of_the_page_are_there() -> None:
    for module in re.findall(r"python -m (tests\.[\w.]+)", PAGE):
        assert (CHECKOUT / f"{module.replace('.', '/')}.py").is_file()
    targets = re.findall(r"^(\S+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`?make (\w[\w-]*)", PAGE)) <= set(targets)


def test_citation_and_changes_are_of_this_version() -> None:
    cited = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and str(cited["version"]) == VERSION and cited["message"]
    assert (
        cited["preferred-citation"]["url"].endswith("2308.14009") and len(cited["preferred-citation"]["authors"]) == 5
    )
    heads = re.findall(r"^## (\S+)", (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == "Unreleased" and heads[1] == VERSION
