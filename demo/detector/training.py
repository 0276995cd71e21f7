"""Stage `detector`: trains the demo's detector on freshly drawn scenes.

Frozen in `dvc.yaml`, its weights committed: a newcomer doesn't wait for it, and ``dvc repro -f -s detector`` (after
``dvc unfreeze detector``) does it again. The losses are Faster R-CNN's (Ren et al., NeurIPS 2015) and a cross-entropy
over the attributes of the foreground boxes. The scenes come from seeds that the demo's data set never uses.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import box_iou
from tqdm import tqdm

from demo.detector.labels import ATTRIBUTES, OBJECTS
from demo.detector.network import SceneRCNN
from demo.detector.settings import DetectorTrainingSettings
from demo.scenes.drawing import draw_scene
from extract.vision.rcnn.proposals import propose
from manifests.files import atomic, sha256
from manifests.progress import progress


def run(*, settings: DetectorTrainingSettings, out: Path) -> None:
    """Train from `settings.seed` and write half-precision weights (about 1.4 MB) to `out`."""
    torch.manual_seed(settings.seed)
    network = SceneRCNN().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.iterations)
    losses = Losses(network)
    bar = progress(_batches(settings), what="detector", unit="batches", total=settings.iterations)
    for pictures, boxes, classes, attributes in bar:
        loss = losses(pictures, boxes, classes, attributes)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with atomic(out) as temporary:
        weights = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
        save_file({name: value.half() for name, value in weights.items()}, temporary)
    tqdm.write(f"sha256 {sha256(out)}: put it under `detector.sha256` of the data sets that use these weights")


def _batches(settings: DetectorTrainingSettings) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]]:
    seeds = [(settings.seed, iteration, settings.batch_size) for iteration in range(settings.iterations)]
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        for pictures, targets in pool.map(_draw, seeds):
            boxes, classes, attributes = ([torch.tensor(t[part]) for t in targets] for part in range(3))
            yield torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, boxes, classes, attributes


def _draw(seed: tuple[int, int, int]) -> tuple[np.ndarray, list[tuple[list, list, list]]]:
    rng = np.random.default_rng(seed[:2])
    pictures, targets = [], []
    for _ in range(seed[2]):
        picture, scene = draw_scene(rng)
        pictures.append(picture)
        targets.append(
            (
                [item.box for item in scene.objects],
                [OBJECTS.index(item.shape) for item in scene.objects],
                [ATTRIBUTES.index(f"{item.texture} {item.colour}") for item in scene.objects],
            )
        )
    return np.stack(pictures), targets


class Losses:
    """The five losses of one batch, summed: objectness, proposal deltas, class, box deltas, attribute."""

    def __init__(self, network: SceneRCNN):
        self.network = network
        self.anchor_coder, self.box_coder = BoxCoder((1.0, 1.0, 1.0, 1.0)), network.box_coder
        self.anchor_matcher = Matcher(0.6, 0.3, allow_low_quality_matches=True)
        self.box_matcher = Matcher(0.5, 0.5, allow_low_quality_matches=False)
        self.anchor_sampler = BalancedPositiveNegativeSampler(128, 0.5)
        self.box_sampler = BalancedPositiveNegativeSampler(48, 0.4)

    def __call__(
        self, pictures: Tensor, boxes: list[Tensor], classes: list[Tensor], attributes: list[Tensor]
    ) -> Tensor:
        """Loss, a scalar, of pictures ``[B, 3, H, W]`` and each one's boxes ``[O, 4]`` with their ids ``[O]``."""
        network = self.network
        boxes = [b.float() for b in boxes]
        feature_map = network.features(pictures)
        anchors = network.anchor_boxes(pictures, feature_map)
        objectness, deltas = network.rpn(feature_map)
        size = (pictures.shape[-2], pictures.shape[-1])
        loss = pictures.new_zeros(())
        sampled, matched = [], []
        for i, truth in enumerate(boxes):
            match = self.anchor_matcher(box_iou(truth, anchors))
            rows, positive = self._sample(self.anchor_sampler, match)
            targets = self.anchor_coder.encode_single(truth[match[positive]], anchors[positive])
            loss = loss + F.binary_cross_entropy_with_logits(objectness[i, rows], (match[rows] >= 0).float())
            loss = loss + F.smooth_l1_loss(deltas[i, positive], targets, beta=1 / 9, reduction="sum") / len(rows)
            with torch.no_grad():
                proposals, _ = propose(
                    [objectness[i]], [deltas[i]], [anchors], size, before=300, after=100, at_least=1, nms_threshold=0.7
                )
                proposals = torch.cat([proposals, truth])
                match = self.box_matcher(box_iou(truth, proposals))
                rows, _ = self._sample(self.box_sampler, match)
            sampled.append(proposals[rows])
            matched.append(match[rows])
        features = network.region_features(feature_map, sampled)
        class_logits, box_deltas = network.class_head(features), network.delta_head(features)
        match = torch.cat(matched)
        positive = match >= 0
        index = match.clamp(min=0)
        picture = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor([len(s) for s in sampled]))
        offset = torch.tensor([0, *np.cumsum([len(b) for b in boxes])[:-1]])
        target = offset[picture] + index
        labels = torch.where(positive, torch.cat(classes)[target] + 1, 0)
        targets = self.box_coder.encode_single(torch.cat(boxes)[target[positive]], torch.cat(sampled)[positive])
        own = box_deltas.view(len(match), -1, 4)[positive.nonzero().squeeze(1), labels[positive]]
        return (
            loss / len(boxes)
            + F.cross_entropy(class_logits, labels)
            + F.smooth_l1_loss(own, targets, beta=1 / 9, reduction="sum") / len(match)
            + F.cross_entropy(network.attribute_head(features)[positive], torch.cat(attributes)[target[positive]])
        )

    @staticmethod
    def _sample(sampler: BalancedPositiveNegativeSampler, match: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled rows, and the positive ones among them. `match` is an index of the truth, or negative."""
        labels = torch.where(match >= 0, 1, torch.where(match == Matcher.BETWEEN_THRESHOLDS, -1, 0))
        (positive,), (negative,) = sampler([labels])
        positive, negative = positive.nonzero().squeeze(1), negative.nonzero().squeeze(1)
        return torch.cat([positive, negative]), positive
