"""How stores lie on disk: HDF5 shards that are written whole and read through memory maps."""
