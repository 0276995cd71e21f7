"""Floor 4: embeddings of a split, ranks and recalls, correspondences, the report."""
