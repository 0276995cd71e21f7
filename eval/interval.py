"""How far R@sum would move on other test images: a bootstrap over images.

The images of the split are drawn again with replacement, each with all its captions as queries; the candidates stay.
Two runs are compared on the same draws, so that what is hard for both cancels out. The interval holds the luck of the
test images only: another seed of the training moves R@sum too, and that isn't in it.
"""

import numpy as np

from eval.recall import CUTOFFS

DRAWS = 2000


def rsum_draws(
    i2t: np.ndarray, i2t_images: np.ndarray, t2i: np.ndarray, caption_image: np.ndarray, num_images: int
) -> np.ndarray:
    """R@sum of `DRAWS` resampled splits, `[DRAWS]`; the same draws for every run with the same number of images.

    `i2t [M]` are the ranks of images `i2t_images [M]`, `t2i [C]` those of captions of images `caption_image [C]`.
    """
    image_queries = np.bincount(i2t_images, minlength=num_images).astype(float)
    caption_queries = np.bincount(caption_image, minlength=num_images).astype(float)
    image_hits = np.bincount(i2t_images, _hits(i2t), minlength=num_images)
    caption_hits = np.bincount(caption_image, _hits(t2i), minlength=num_images)
    random = np.random.default_rng(0)
    weights = random.multinomial(num_images, np.full(num_images, 1 / num_images), size=DRAWS).astype(float)
    asked = np.maximum(weights @ image_queries, 1), np.maximum(weights @ caption_queries, 1)
    return 100 * (weights @ image_hits / asked[0] + weights @ caption_hits / asked[1])


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of `draws`."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def _hits(ranks: np.ndarray) -> np.ndarray:
    """How many of the cutoffs each rank satisfies."""
    return sum((np.asarray(ranks) < cutoff).astype(float) for cutoff in CUTOFFS)
