"""Pictures to regions: decoding, detectors, selection."""
