"""A package of parts that isn't SelfAlign's: one file each. `tests/pipeline/test_parts_plugin.py` runs them all."""
