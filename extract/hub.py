"""Hugging Face models on this machine: a folder, or what the hub's cache holds of a name. Nothing is ever fetched.

A model that isn't there is an error that says where it was looked for and which command fetches it beforehand.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.packages import local_path
from manifests.errors import InputError
from manifests.files import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# As the hub has them: no name starts or ends with a dot or a hyphen, or has two of them beside each other.
_PART = r"\w+(?:[.-]\w+)*"
_HUB_NAME = re.compile(rf"{_PART}(/{_PART})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a model is for.

    role : what messages call it.
    example : a hub name that is one.
    fetch : what `hf download` is to fetch of it, as arguments.
    """

    role: str
    example: str
    fetch: str

    def how_to_get(self, model: str, revision: str | None = None) -> str:
        """What to do about a model that isn't here."""
        options = f" --revision {shlex.quote(revision)}" if revision else ""
        named = f"`hf download {shlex.quote(model)} {self.fetch}{options}`"
        placed = f"`hf download {self.example} {self.fetch} --local-dir {shlex.quote(model)}`"
        if Path(model).is_dir() or not _HUB_NAME.fullmatch(model):
            advice = f"fetch it beforehand, for instance {placed}"
        else:
            advice = f"fetch it beforehand: if that is a name of the hub, {named}; if a folder, for instance {placed}"
        return f"{advice}; or name a folder that save_pretrained wrote"


def find_model(
    model: str, revision: str | None, kind: Kind, needs: Sequence[str] = ("config.json", "*.safetensors")
) -> Path:
    """The folder of a model: `model` itself, one of a package (`extract.packages`), or that in the Hugging Face cache.

    Raises
    ------
    InputError : it is in neither place, or without one of the files that it `needs`.
    """
    from huggingface_hub import constants, snapshot_download

    folder = local_path(model)
    if not folder.is_dir():
        cache = Path(constants.HF_HUB_CACHE)
        place = f"{kind.role} {model!r}, looked for as folder {folder.absolute()} and in the Hugging Face cache {cache}"
        if not _HUB_NAME.fullmatch(model):
            raise InputError("no such folder, and no name of the hub", where=place, fix=kind.how_to_get(model))
        try:
            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except OSError as error:
            fix = kind.how_to_get(model, revision)
            raise InputError("it is not on this machine", where=place, fix=fix) from error
    else:
        place = f"{kind.role} {model!r}, folder {folder.absolute()}"
    missing = [name for name in needs if not any(folder.glob(name))]
    if missing:
        fix = kind.how_to_get(model, revision)
        raise InputError(f"it lacks {' and '.join(missing)}", where=place, fix=fix)
    return folder


def load_model(
    model: str, revision: str | None, kind: Kind, unused: str | None = None, fixes: Mapping[str, str] | None = None
) -> "PreTrainedModel":
    """The model in float32, in evaluation mode.

    Parameters
    ----------
    unused : name of a module that may lack weights, since it isn't used.
    fixes : what to do where a module of that name is all that lacks weights, if not fetching the model.

    Raises
    ------
    InputError : it isn't there (`find_model`), it doesn't load, or its weights are incomplete.
    """
    from transformers import AutoModel

    folder = find_model(model, revision, kind)
    where = f"{kind.role} {model!r} in {folder}"
    try:
        loaded, info = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise whatever damaged files lead them to
        fix = kind.how_to_get(model, revision)
        raise InputError(f"it doesn't load ({error})", where=where, fix=fix) from error
    random = sorted(name for name in info["missing_keys"] if unused not in name.split("."))
    if random:
        fix = kind.how_to_get(model, revision)
        for module, instead in (fixes or {}).items():
            if all(module in name.split(".") for name in random):
                fix = instead
        raise InputError(f"its weights lack {len(random)} tensors, the first {random[0]!r}", where=where, fix=fix)
    return loaded.float().eval()


def model_recipe(name: str, folder: Path) -> dict[str, Any]:
    """What says which model it is: its name without where it lies, and sha256 of its configuration and weights."""
    return {
        "name": Path(name).name,
        "config_sha256": sha256(folder / "config.json"),
        "weights_sha256": {file.name: sha256(file) for file in sorted(folder.glob("*.safetensors"))},
    }
