"""The parameters of the word stage and of the text features stage, as they stand in `params.yaml`."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from manifests.typed import Settings

MAX_WORDS = 256


class TokenSettings(Settings):
    """The settings that decide a token store's contents, beside the captions themselves."""

    language: str = Field(
        default="en_core_web_sm",
        min_length=1,
        description='"scenes" (English words, parts of speech of the demo\'s own words), "blank_en" (English words, no '
        'parts of speech), "blank:CODE" (spaCy\'s bare pipeline of a language), "characters" (for scripts without '
        "spaces), an installed spaCy pipeline's name, or the path of one",
    )
    min_count: int = Field(default=4, ge=1, description="a word enters the vocabulary from this many uses in train")
    vocabulary: Path | None = Field(
        default=None, description="a vocabulary.json to use instead of making one; min_count has no effect then"
    )
    tokenizer: Path | None = Field(
        default=None, description="folder of a Hugging Face tokenizer, to store word pieces as well"
    )
    max_words: int = Field(default=MAX_WORDS, ge=1, description="captions are cut to this many words, their text stays")
    max_pieces: int | None = Field(
        default=None, ge=1, description="captions are cut to this many word pieces, special tokens included"
    )

    @model_validator(mode="after")
    def _pieces_need_a_tokenizer(self) -> Self:
        if self.max_pieces is not None and self.tokenizer is None:
            raise ValueError("max_pieces needs a tokenizer: name its folder, or leave max_pieces out")
        return self


class TextFeatureSettings(Settings):
    """The settings that decide a data set's text features, beside its token store."""

    model: str = Field(min_length=1, description="folder or hub name of a Hugging Face encoder; nothing is fetched")
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub name")
    layer: int = Field(default=-1, description="the layer of the hidden states: 0 the embeddings, -1 the last layer")
    captions_per_shard: int = Field(default=16384, ge=1)
