"""Floor 1: what a data set is. The manifest's schema, the readers that make one, the demo's scenes, fingerprints."""
