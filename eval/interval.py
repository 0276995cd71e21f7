"""How far recalls and R@sum would move on other test images: a bootstrap over images.

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
    """R@sum of `DRAWS` resampled splits, `[DRAWS]`; arguments as in `recall_draws`."""
    return recall_draws(i2t, i2t_images, t2i, caption_image, num_images)["rsum"]


def recall_draws(
    i2t: np.ndarray, i2t_images: np.ndarray, t2i: np.ndarray, caption_image: np.ndarray, num_images: int
) -> dict[str, np.ndarray]:
    """Every recall and R@sum of `DRAWS` resampled splits, `[DRAWS]` each by its name in `eval.recall.recalls`.

    The draws are the same for every run with the same number of images. `i2t [M]` are the ranks of images
    `i2t_images [M]`, `t2i [C]` those of captions of images `caption_image [C]`.
    """
    random = np.random.default_rng(0)
    weights = random.multinomial(num_images, np.full(num_images, 1 / num_images), size=DRAWS).astype(np.float32)
    draws: dict[str, np.ndarray] = {}
    for direction, ranks, owner in (("i2t", i2t, i2t_images), ("t2i", t2i, caption_image)):
        asked = np.maximum(weights @ np.bincount(owner, minlength=num_images).astype(np.float32), 1)
        for cutoff in CUTOFFS:
            hits = np.bincount(owner, ranks < cutoff, minlength=num_images).astype(np.float32)
            draws[f"{direction}_r{cutoff}"] = 100 * (weights @ hits).astype(np.float64) / asked
    return draws | {"rsum": np.sum(list(draws.values()), axis=0)}


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of `draws`."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)
