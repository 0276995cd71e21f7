"""A base and a loss of another package, a file each: trained on the demo by their names, and shown in the report."""

from pathlib import Path

import pytest

from tests.pipeline.project import Project, copy_checkout, shrink_demo

BASE = '''
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from train.bases import BASES
from train.bases.base import Base, BaseSettings
from train.encoding import Encoded
from train.masking import masked_mean


class MeanSettings(BaseSettings):
    dim: int = Field(32, ge=1)


@BASES.add("mean", version=2)
class Mean(Base):
    """The mean of projected regions, and of projected words."""

    Settings = MeanSettings

    def __init__(self, settings, feature_dim, words):
        super().__init__()
        self.words = words
        self.images, self.captions = nn.Linear(feature_dim, settings.dim), nn.Linear(words.width, settings.dim)

    def encode_images(self, batch):
        return self._encoded(self.images(batch.features), batch.mask)

    def encode_captions(self, batch):
        return self._encoded(self.captions(self.words(batch)), batch.mask)

    def _encoded(self, x, mask):
        pooled = F.normalize(masked_mean(x, mask), dim=-1)
        return Encoded(mask=mask, locals=F.normalize(x, dim=-1), contextual=x, pooled=pooled[:, None])
'''
LOSS = '''
from train.losses import LOSSES
from train.losses.loss import Loss, LossSettings


class SpreadSettings(LossSettings):
    margin: float = 0.5


@LOSSES.add("spread")
class Spread(Loss):
    """Scores of pairs that belong together lie near the margin."""

    Settings = SpreadSettings

    def forward(self, step):
        return (step.scores.diagonal() - self.options.margin).square().mean()
'''


@pytest.mark.slow
def test_parts_of_another_package_train_and_are_reported(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    info = packages / "elsewhere-1.2.dist-info"
    info.mkdir(parents=True)
    (packages / "elsewhere").mkdir()
    for name, text in {"__init__": "", "mean": BASE, "spread": LOSS}.items():
        (packages / "elsewhere" / f"{name}.py").write_text(text, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.2\n", encoding="utf-8")
    (info / "top_level.txt").write_text("elsewhere\n", encoding="utf-8")
    parts = "mean = elsewhere.mean\nspread = elsewhere.spread\n"
    (info / "entry_points.txt").write_text(f"[selfalign.parts]\n{parts}", encoding="utf-8")

    project = Project(tmp_path / "project")
    project.root.mkdir()
    copy_checkout(project)
    project.environment["PYTHONPATH"] += f":{packages}"
    params = shrink_demo(project.params)
    run = params["runs"]["vsrn"]
    run |= {
        "base": {"name": "mean"},
        "losses": run["losses"] | {"spread": {"weight": 2.0}, "lca": {"num_concepts": 16}},
    }
    params |= {"runs": {"theirs": run}, "ensembles": {}, "studies": {}}
    project.write_params(params)
    project.repro("evaluate@theirs", "report")
    curve = (project.root / "runs/theirs/epochs.csv").read_text(encoding="utf-8").splitlines()
    assert len(curve) == 3 and {"spread", "lca", "triplet"} <= set(curve[0].split(","))
    assert project.metrics("theirs")["rsum"] > 0
    pages = [page.read_text(encoding="utf-8") for page in (project.root / "report").glob("*.html")]
    assert any("theirs" in page and "spread" in page for page in pages)

    params["runs"]["theirs"]["losses"]["spred"] = {}
    project.write_params(params)
    told = project.command("selfalign", "train", "theirs", ends_with=1).text
    assert "runs.theirs.losses: no loss 'spred' (did you mean 'spread'?)" in told
