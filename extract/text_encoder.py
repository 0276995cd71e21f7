"""A Hugging Face text encoder: found on this machine (nothing is fetched), loaded, and run over word pieces.

The text features stage runs one once over every caption; training may run one in its loop. Both come here, so that
both see the same states.
"""

import inspect
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manifests.errors import InputError
from manifests.files import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# They count positions from behind the padding's number.
_SHIFTED = ("roberta", "xlm-roberta", "roberta-prelayernorm", "camembert", "mpnet", "data2vec-text", "longformer")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def find_encoder(model: str, revision: str | None = None) -> Path:
    """The folder of an encoder: `model` itself, or what the Hugging Face cache holds of that hub name.

    Raises
    ------
    InputError : it is in neither place, or without its config.json or safetensors weights.
    """
    from huggingface_hub import constants, snapshot_download

    folder = Path(model)
    if not folder.is_dir():
        cache = Path(constants.HF_HUB_CACHE)
        looked = f"encoder {model!r}, looked for as folder {folder.absolute()} and in the Hugging Face cache {cache}"
        if not _HUB_NAME.fullmatch(model):
            raise InputError("no such folder, and no name of the hub", where=looked, fix=_fetch(model))
        try:
            folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except OSError as error:
            raise InputError("it is not on this machine", where=looked, fix=_fetch(model, revision)) from error
    else:
        looked = f"encoder {model!r}, folder {folder.absolute()}"
    missing = [name for name in ("config.json", "*.safetensors") if not any(folder.glob(name))]
    if missing:
        raise InputError(f"it lacks {' and '.join(missing)}", where=looked, fix=_fetch(model, revision))
    return folder


def _fetch(model: str, revision: str | None = None) -> str:
    """What to do about an encoder that isn't here."""
    options = f" --revision {shlex.quote(revision)}" if revision else ""
    if not _HUB_NAME.fullmatch(model):
        options += f" --local-dir {shlex.quote(model)}"
        model = "bert-base-uncased"
    files = "config.json model.safetensors tokenizer.json tokenizer_config.json"
    return (
        f"fetch it beforehand, for instance `hf download {shlex.quote(model)} {files}{options}`, or name a "
        "folder that save_pretrained wrote"
    )


def encoder_recipe(model: str, revision: str | None = None) -> dict[str, Any]:
    """What says which encoder it is: its name without where it lies, and sha256 of its configuration and weights."""
    folder = find_encoder(model, revision)
    files = sorted(folder.glob("*.safetensors"))
    return {
        "name": Path(model).name,
        "config_sha256": sha256(folder / "config.json"),
        "weights_sha256": {file.name: sha256(file) for file in files},
    }


def load_encoder(model: str, revision: str | None = None) -> "PreTrainedModel":
    """The encoder `model` in float32, in evaluation mode.

    Raises
    ------
    InputError : it isn't there (`find_encoder`), it doesn't load, or its weights are incomplete.
    """
    from transformers import AutoModel

    folder = find_encoder(model, revision)
    where = f"encoder {model!r} in {folder}"
    try:
        loaded, info = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise InputError(f"it doesn't load ({error})", where=where, fix=_fetch(model, revision)) from error
    random = sorted(name for name in info["missing_keys"] if "pooler" not in name.split("."))
    if random:
        raise InputError(
            f"its weights lack {len(random)} tensors, the first {random[0]!r}", where=where, fix=_fetch(model, revision)
        )
    return loaded.float().eval()


def encoder_of(config: Mapping[str, Any]) -> "PreTrainedModel":
    """A new encoder of a configuration that `PretrainedConfig.to_dict` gave: for weights that lie elsewhere."""
    from transformers import AutoConfig, AutoModel

    values = dict(config)
    return AutoModel.from_config(AutoConfig.for_model(values.pop("model_type"), **values)).float()


class PieceEncoder(nn.Module):
    """Word pieces to the states of one layer of a Hugging Face model, of its text half where it has two.

    Parameters
    ----------
    model : any `PreTrainedModel` that reads text; its pooler, which no state depends on, is taken off.
    layer : which hidden states: 0 the embeddings, -1 the last layer.

    Attributes
    ----------
    width : W, length of a state.
    config : the whole model's configuration, for `encoder_of`.

    Raises
    ------
    InputError : the model has no such layer.
    """

    def __init__(self, model: "PreTrainedModel", layer: int = -1):
        super().__init__()
        self.config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
        text = model.config.get_text_config()
        self.width, self.vocabulary_size = text.hidden_size, text.vocab_size
        self.most_pieces: int | None = _most_pieces(text)
        self.first_position = text.pad_token_id + 1 if text.model_type in _SHIFTED else 0
        self.model = model.get_encoder() if model.config.is_encoder_decoder else getattr(model, "text_model", model)
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None
        states = text.num_hidden_layers + 1
        if not -states <= layer < states:
            raise InputError(
                f"there is no layer {layer}: the encoder has states 0 to {states - 1}",
                where=type(model).__name__,
                fix="set layer to one of them; -1 is the last",
            )
        self.layer = None if layer in (-1, states - 1) else layer

    def forward(self, pieces: Tensor, mask: Tensor) -> Tensor:
        """States ``[B, P, W]`` of pieces int64 ``[B, P]``, special tokens included; `mask` ``[B, P]`` is true on them.

        What stands in `pieces` where the mask is false doesn't matter, but must be in the vocabulary. A caption of more
        pieces than the encoder reads raises `InputError`.
        """
        if self.most_pieces is not None and pieces.shape[1] > self.most_pieces:
            raise InputError(
                f"a caption has {pieces.shape[1]} word pieces, the encoder reads {self.most_pieces}",
                where=type(self.model).__name__,
                fix=f"set datasets.D.tokens.max_pieces to {self.most_pieces} or less (32 is usual)",
            )
        return self._states(input_ids=pieces, attention_mask=mask.long())

    def of_vectors(self, vectors: Tensor, mask: Tensor, *, ordered: bool) -> Tensor:
        """States ``[B, N, W]`` of vectors ``[B, N, W]`` in the place of the pieces' embeddings.

        Those that are not `ordered` all stand at the first position, so that their order doesn't matter, where the
        encoder is told positions (most are).
        """
        told = {"position_ids"} & inspect.signature(self.model.forward).parameters.keys()
        positions = mask.new_full(mask.shape, self.first_position, dtype=torch.long)
        return self._states(
            inputs_embeds=vectors,
            attention_mask=mask.long(),
            **({"position_ids": positions} if told and not ordered else {}),
        )

    def _states(self, **given: Tensor) -> Tensor:
        out = self.model(output_hidden_states=self.layer is not None, return_dict=True, **given)
        return out.last_hidden_state if self.layer is None else out.hidden_states[self.layer]

    def require_vectors(self) -> None:
        """Raise `InputError` unless `of_vectors` works."""
        if "inputs_embeds" not in inspect.signature(self.model.forward).parameters:
            raise InputError(
                "it reads word pieces alone, no vectors in their place",
                where=f"encoder {type(self.model).__name__}",
                fix="take another one for base transformer, for instance a BERT",
            )

    def require_vocabulary(self, size: int, where: object) -> None:
        """Raise `InputError` unless the encoder knows all `size` entries of a tokenizer."""
        if size > self.vocabulary_size:
            raise InputError(
                f"its tokenizer has {size} entries, the encoder {self.vocabulary_size}",
                where=where,
                fix="set datasets.D.tokens.tokenizer to the encoder's own tokenizer",
            )


def _most_pieces(config: Any) -> int | None:
    """How many pieces an encoder of learned positions reads; None where there is no bound."""
    most = getattr(config, "max_position_embeddings", None)
    if not most or most < 0:
        return None
    return most - config.pad_token_id - 1 if config.model_type in _SHIFTED else most
