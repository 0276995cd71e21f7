"""The demo: drawn scenes, their captions, words and detector. Nobody's real features depend on it."""
