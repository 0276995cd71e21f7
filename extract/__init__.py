"""Floor 2: from pictures and captions to stores. Detectors, the region and word stages, WebDataset packing."""
