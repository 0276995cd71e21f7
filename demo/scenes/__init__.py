"""The demo's pictures: drawn scenes and their captions."""
