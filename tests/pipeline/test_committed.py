"""What is committed belongs together: the lock file, the demo's figures, the documents."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
LOCK = yaml.safe_load((CHECKOUT / "dvc.lock").read_text())["stages"]
PARAMS = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True
).stdout.splitlines()


def test_committed_outputs_are_those_of_the_lock_file():
    outs = {out["path"]: out["md5"] for stage in LOCK.values() for out in stage["outs"] if out["path"] in TRACKED}
    assert len(outs) >= 2 * len(PARAMS["runs"])
    found = {path: hashlib.md5((CHECKOUT / path).read_bytes()).hexdigest() for path in outs}
    assert found == outs


@pytest.mark.parametrize("run", PARAMS["runs"])
def test_the_demo_finds_images_by_caption_far_better_than_chance(run):
    figures = json.loads((CHECKOUT / "runs" / run / "metrics.json").read_text())
    assert PARAMS["scenes"]["test"] >= 500
    least = 60 * 100 / PARAMS["scenes"]["test"]
    assert figures["t2i_r1"] >= least, f"t2i R@1 below {least} %: train it longer, or take it out of params.yaml"


@pytest.mark.parametrize("page", [name for name in TRACKED if name.endswith(".md")])
def test_links_of_the_documents_lead_somewhere(page):
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not ((CHECKOUT / page).parent / link).exists()] == []


def test_every_data_set_and_run_is_an_artifact():
    """So that `dvc artifacts get` and gto know it: docs/sharing.md."""
    declared = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text())["artifacts"]
    stores = {"regions": PARAMS["datasets"], "pack": PARAMS["packs"]}
    paths = {f"{name}-{store}": f"data/{name}/{store}" for store, names in stores.items() for name in names}
    paths |= {run: f"runs/{run}/model" for run in PARAMS["runs"]}
    assert {name: entry["path"] for name, entry in declared.items()} == paths
    for name, entry in declared.items():
        assert entry["type"] == ("model" if name in PARAMS["runs"] else "dataset"), name
        assert len(entry["desc"]) > 10 and entry["labels"], name
