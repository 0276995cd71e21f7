"""Uni-modal teachers: networks, or plain sums, that find images alike, and captions alike, without the other side."""
