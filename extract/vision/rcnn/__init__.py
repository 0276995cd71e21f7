"""Faster R-CNN from detectron2's checkpoints: reading, network, proposals."""
