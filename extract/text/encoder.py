"""A Hugging Face text encoder: found on this machine (nothing is fetched), loaded, and run over word pieces.

The text features stage runs one once over every caption; training may run one in its loop. Both come here, so that
both see the same states.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from extract.hub import Kind, find_model, load_model, model_recipe
from manifests.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# They count positions from behind the padding's number.
_SHIFTED = ("roberta", "xlm-roberta", "roberta-prelayernorm", "camembert", "mpnet", "data2vec-text", "longformer")
_MOST_LAYERS = 1000
ENCODER = Kind("encoder", "bert-base-uncased", "config.json model.safetensors tokenizer.json tokenizer_config.json")


def find_encoder(model: str, revision: str | None = None) -> Path:
    """The folder of an encoder (`extract.hub.find_model`)."""
    return find_model(model, revision, ENCODER)


def encoder_recipe(model: str, revision: str | None = None) -> dict[str, Any]:
    """The facts that identify an encoder."""
    return model_recipe(model, find_encoder(model, revision))


def load_encoder(model: str, revision: str | None = None, kind: Kind = ENCODER) -> "PreTrainedModel":
    """The encoder `model` (`extract.hub.load_model`); its pooler, which no state depends on, may lack weights."""
    return load_model(model, revision, kind, unused="pooler")


def mask_id_of(model: str, revision: str | None = None) -> int | None:
    """The mask's id of the tokenizer that lies beside the encoder `model`; None without a tokenizer or a mask."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(find_encoder(model, revision), local_files_only=True).mask_token_id
    except Exception:  # as of `extract.text.pieces`
        return None


def encoder_of(config: Mapping[str, Any]) -> "PreTrainedModel":
    """A new encoder of a configuration that `PretrainedConfig.to_dict` gave: for weights that lie elsewhere."""
    from transformers import AutoConfig, AutoModel

    values = dict(config)
    made = AutoConfig.for_model(values.pop("model_type"), **values)
    if (layers := made.get_text_config().num_hidden_layers) > _MOST_LAYERS:
        message = f"{layers} layers are more than any encoder has"
        raise InputError(message, where="an encoder's configuration", fix="restore the file that it comes from")
    return AutoModel.from_config(made).float()


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

        Where the mask is false, `pieces` may have any number of the vocabulary. A caption of more pieces than the
        encoder reads raises `InputError`.
        """
        if self.most_pieces is not None and pieces.shape[1] > self.most_pieces:
            raise InputError(
                f"a caption has {pieces.shape[1]} word pieces, the encoder reads {self.most_pieces}",
                where=type(self.model).__name__,
                fix=f"set datasets.D.tokens.max_pieces to {self.most_pieces} or less (32 is usual)",
            )
        return self._states(mask, input_ids=pieces)

    def of_vectors(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """States ``[B, N, W]`` of vectors ``[B, N, W]`` in the place of the pieces' embeddings, in their order."""
        return self._states(mask, inputs_embeds=vectors)

    def of_embedded(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """States ``[B, N, W]`` of vectors ``[B, N, W]`` that enter the first layer as they are.

        Without positions, types and LayerNorm of the embeddings, so that their order doesn't matter.
        """
        embeddings = self.model.embeddings
        embeddings.forward = lambda *_, **__: vectors
        try:
            return self._states(mask, inputs_embeds=vectors)
        finally:
            del embeddings.forward

    def _states(self, mask: Tensor, **given: Tensor) -> Tensor:
        config = self.model.config
        if config.model_type == "bert" and config._attn_implementation == "sdpa":
            mask = mask[:, None, None].expand(-1, 1, mask.shape[1], -1)  # whole, it isn't asked whether it is all true
        else:
            mask = mask.long()
        out = self.model(attention_mask=mask, output_hidden_states=self.layer is not None, return_dict=True, **given)
        return out.last_hidden_state if self.layer is None else out.hidden_states[self.layer]

    def require_vectors(self) -> None:
        """Raise `InputError` unless `of_vectors` and `of_embedded` work."""
        takes_vectors = "inputs_embeds" in inspect.signature(self.model.forward).parameters
        if not takes_vectors or not hasattr(self.model, "embeddings"):
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
    """The number of pieces that an encoder of learned positions reads; None without a bound."""
    most = getattr(config, "max_position_embeddings", None)
    if not most or most < 0:
        return None
    return most - config.pad_token_id - 1 if config.model_type in _SHIFTED else most
