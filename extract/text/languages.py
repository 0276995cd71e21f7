"""The language of captions, by their script, or by the frequent words that they use (spaCy's stop words).

Also the stop words of a language that is known.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache

from spacy.util import get_lang_class

LEAST = 0.1  # share of a language's stop words from which on captions may be in it
PLAIN = 0.3  # that of English from which on no other language is asked
_SCRIPTS = {
    "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh", "HANGUL": "ko", "THAI": "th", "HEBREW": "he", "DEVANAGARI": "hi",
    "GREEK": "el", "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te", "ARMENIAN": "hy",
}  # fmt: skip
# Several of one script: the first of equal share is taken.
_BY_WORDS = (
    "en", "de", "fr", "es", "it", "pt", "nl", "ru", "tr", "pl", "sv", "da", "nb", "fi", "cs", "ro", "hu", "ca", "uk",
    "bg", "hr", "id", "vi", "ar", "fa", "ur",
)  # fmt: skip


@cache
def stop_words(language: str) -> frozenset[str]:
    """spaCy's stop words of the language of a pipeline, which its name tells: en_core_web_sm, blank_en, blank:de.

    Empty where the name tells none, or where spaCy has none for it.
    """
    found = re.match(r"(?:blank[_:])?([a-z]{2,3})(?=_|$)", language)
    try:
        return frozenset(get_lang_class(found[1]).Defaults.stop_words) if found else frozenset()
    except ImportError:
        return frozenset()


def guess_language(captions: Iterable[str]) -> str | None:
    """The code of the captions' language (ISO 639, as spaCy has it); None where none is plain."""
    words = Counter(word for text in captions for word in re.findall(r"[^\W\d_]+", text.lower()))
    letters = Counter[str]()
    for word, uses in words.items():
        for letter in word:
            letters[unicodedata.name(letter, "").partition(" ")[0]] += uses
    if not letters:
        return None
    (script, _), total = letters.most_common(1)[0], letters.total()
    if letters["HIRAGANA"] + letters["KATAKANA"] > total / 20:  # beside Han characters
        return "ja"
    if script in _SCRIPTS:
        return _SCRIPTS[script]
    shares = {}
    for code in _BY_WORDS:
        met = words.keys() & get_lang_class(code).Defaults.stop_words
        shares[code] = sum(words[word] for word in met) / words.total() if len(met) > 1 else 0.0
        if code == "en" and shares[code] >= PLAIN:
            return code
    best = max(shares, key=lambda code: shares[code])
    return best if shares[best] >= LEAST else None
