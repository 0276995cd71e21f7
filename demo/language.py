"""The demo's language: spaCy's English tokenizer, and the part of speech of every word of the captions."""

import spacy
from spacy.language import Language

from demo.scenes.describing import PARTS_OF_SPEECH
from extract.text.words import LANGUAGES
from manifests.files import fingerprint


@LANGUAGES.add("scenes")
def scenes() -> tuple[Language, dict[str, str]]:
    """The pipeline, and its entry in a recipe."""
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("attribute_ruler")
    for tag in sorted(set(PARTS_OF_SPEECH.values())):
        words = sorted(word for word, its_tag in PARTS_OF_SPEECH.items() if its_tag == tag)
        ruler.add([[{"LOWER": {"IN": words}}]], {"POS": tag})
    return nlp, {"name": "scenes", "parts_of_speech_sha256": fingerprint(PARTS_OF_SPEECH)}
