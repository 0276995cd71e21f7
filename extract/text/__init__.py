"""From captions to words, parts of speech, word pieces and a vocabulary."""
