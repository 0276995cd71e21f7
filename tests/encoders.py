"""A tiny BERT with random weights and a real WordPiece tokenizer, written as Hugging Face writes them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
# Words outside it become letters, so that a caption has words of one piece and words of many.
ENTRIES = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), ".", ",", "the", "star", "ring", "blue", "left"]


def write_encoder(folder: Path, *, width: int = 16, positions: int = 128, seed: int = 0) -> Path:
    """Write model and tokenizer to `folder`, and give it back."""
    built = Tokenizer(models.WordPiece({entry: number for number, entry in enumerate(ENTRIES)}, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # The usual start, of 0.02, gives states that hardly depend on the words.
        BertModel(tiny_config(width, positions)).save_pretrained(folder)
    return folder


def tiny_config(width: int = 16, positions: int = 128) -> BertConfig:
    """Two layers, with dropout, that tell their words apart without being trained."""
    return BertConfig(
        vocab_size=len(ENTRIES),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=positions,
        initializer_range=0.5,
    )
