"""Teacher `colours`: an image is the mean colour of its picture."""

from typing import Literal

import numpy as np
from PIL import Image

from extract.teachers import TEACHERS
from extract.teachers.teacher import Teacher
from manifests.typed import Settings


class ColoursSettings(Settings):
    name: Literal["colours"] = "colours"


@TEACHERS.add("colours")
class Colours(Teacher):
    Settings = ColoursSettings
    reads = "pictures"
    dim = 3

    def __init__(self, settings, inputs):
        self.images, self.failures, self.recipe = inputs.images, {}, {"name": self.name}

    def embed(self, items):
        for place, image in enumerate(items):
            with Image.open(self.images / image.path) as picture:
                yield [place], np.asarray(picture.convert("RGB"), np.float32).mean((0, 1))[None]
