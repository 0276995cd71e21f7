"""Classes and attributes of the demo's detector, the length of its features and the stride of its map."""

from demo.scenes.drawing import COLOURS, SHAPES, TEXTURES

STRIDE = 8
FEATURE_DIM = 256
OBJECTS = tuple(SHAPES)
ATTRIBUTES = tuple(f"{texture} {colour}" for texture in TEXTURES for colour in COLOURS)
