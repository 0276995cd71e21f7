"""Scripts that are written without spaces, and the bare pipeline that takes their characters for words.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan. spaCy cuts some of them with packages of their own (`blank:ja`
wants SudachiPy); `characters` needs none.
"""

import re
import unicodedata
from collections.abc import Sequence

import spacy
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import get_words_and_spaces
from spacy.vocab import Vocab

from manifests.errors import InputError

NAME = "characters"
_RANGES = (
    *((0x0E01, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3041, 0x30FF), (0x31F0, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x323AF)),
)
_KINDS = {code: unicodedata.category(chr(code))[0] for first, last in _RANGES[:3] for code in range(first, last + 1)}
_LETTER = "".join(chr(code) for code, kind in _KINDS.items() if kind in "LN") + "".join(
    f"{chr(first)}-{chr(last)}" for first, last in _RANGES[3:]
)
_MARK = "".join(chr(code) for code, kind in _KINDS.items() if kind == "M") + "\u3099\u309a"
_WORD = re.compile(rf"[{_LETTER}][{_MARK}]*|(?:(?![{_LETTER}])\w)+(?:['’](?:(?![{_LETTER}])\w)+)*|\S")
_LETTERS = re.compile(rf"[{_LETTER}]")
_LONGEST, _LEAST = 8, 4  # letters of a word, and of a caption that is one word
SAMPLE = 1000  # captions that tell, and characters of each


class _Characters:
    """spaCy's tokenizer for text in any script: a letter without spaces around it is a word, as is a run of others."""

    def __init__(self, vocab: Vocab):
        self.vocab = vocab

    def __call__(self, text: str) -> Doc:
        words, spaces = get_words_and_spaces(_WORD.findall(text), text)
        return Doc(self.vocab, words=words, spaces=spaces)


def characters() -> Language:
    """The pipeline."""
    nlp = spacy.blank("xx")
    nlp.tokenizer = _Characters(nlp.vocab)
    return nlp


def require_cut(nlp: Language, captions: Sequence[str], language: str) -> None:
    """Raise `InputError` where a pipeline leaves text without spaces whole, by the first 1,000 captions.

    That is where more than a fifth of the captions have a word of 8 letters of such a script, or are one of 4.
    """
    captions = captions[:SAMPLE]
    whole = []
    for doc in nlp.pipe([text[:SAMPLE] for text in captions]):
        words = [token.text for token in doc if not (token.is_punct or token.is_space)]
        least = _LEAST if len(words) == 1 else _LONGEST
        whole += [word for word in words if len(_LETTERS.findall(word)) >= least][:1]
    if len(whole) > len(captions) / 5:
        raise InputError(
            f"it takes {whole[0][:30]!r} for a word, and {len(whole):,} of {len(captions):,} captions like that: they "
            "are written without spaces",
            where=f"language: {language}",
            fix=f"set `tokens.language` to {NAME}, or to spaCy's blank:zh, or to a pipeline of the captions' language",
        )
