"""A batch holds what the stores hold, in the order asked for."""

from pathlib import Path

import torch

from train.data import RetrievalData


def test_a_batch_of_regions_is_the_images_regions(dataset: dict[str, Path]) -> None:
    data = RetrievalData(dataset["manifest"], dataset["regions"], dataset["tokens"], "val")
    images = [7, 0, 7, 31]
    batch = data.region_batch(images)
    assert batch.features.dtype == torch.float16 and batch.widened().features.dtype == torch.float32
    assert batch.boxes.dtype == batch.image_size.dtype == torch.float32
    for i, image in enumerate(images):
        regions, there = data.regions(image), batch.mask[i]
        assert there.sum() == len(regions)
        torch.testing.assert_close(batch.features[i, there], torch.tensor(regions.features), rtol=0, atol=0)
        torch.testing.assert_close(batch.boxes[i, there], torch.tensor(regions.boxes), rtol=0, atol=0)
        assert batch.image_size[i].tolist() == list(regions.image_size)
        assert not batch.features[i, ~there].any()
