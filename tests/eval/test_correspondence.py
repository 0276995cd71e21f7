"""Which region a word takes, which phrase it belongs to, which object a region is."""

import numpy as np
import pytest
import torch

from eval.matching.correspondence import iou, phrase_of, region_objects, word_regions
from manifests.grounding import Phrase

OBJECTS = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], float)
REGIONS = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 40, 39], [50, 50, 60, 60], [0, 0, 40, 40]], float)


def test_a_word_takes_its_most_similar_real_region_and_the_first_of_equals():
    regions = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8]]])
    mask = torch.tensor([[True, True, True, False]])
    words = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    best, cosine = word_regions(regions, mask, words, torch.ones(1, 3, dtype=torch.bool), torch.arange(3)[None])
    assert best.tolist() == [[0, 1, 1]]
    assert cosine[0].tolist() == pytest.approx([1, 1, 0.8])


def test_a_word_of_pieces_takes_the_region_with_the_highest_mean_cosine():
    regions = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    pieces = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
    mask, word = torch.tensor([[True, True, True, False]]), torch.tensor([[0, 0, 2, 0]])
    best, cosine = word_regions(regions, torch.ones(1, 3, dtype=torch.bool), pieces, mask, word)
    assert best[0, [0, 2]].tolist() == [2, 1]
    assert cosine[0, [0, 2]].tolist() == pytest.approx([0.7, 1.0])
    assert cosine[0, 1].isnan()  # the second word's pieces were all cut off


def test_iou():
    first, second = np.array([[0, 0, 2, 2]]), np.array([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6], [0, 0, 2, 1]])
    assert iou(first, second)[0].tolist() == pytest.approx([1 / 7, 1, 0, 0.5])


def test_a_region_is_the_object_that_it_overlaps_most_from_one_half_up():
    assert region_objects(REGIONS, OBJECTS).tolist() == [0, 0, 1, -1, -1]
    half = np.array([[0, 0, 10, 5]], float)
    assert region_objects(half, OBJECTS).tolist() == [0]
    assert region_objects(REGIONS, np.empty((0, 4))).tolist() == [-1] * 5


def test_a_word_belongs_to_the_phrase_that_it_shares_most_characters_with():
    phrases = (Phrase(2, 5, 0, "colour"), Phrase(5, 12, 1, "shape"))
    assert phrase_of(2, 5, phrases).object == 0
    assert phrase_of(4, 9, phrases).object == 1
    assert phrase_of(0, 2, phrases) is None
    assert phrase_of(0, 2, ()) is None
