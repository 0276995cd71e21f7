"""The local search page of `selfalign serve` (docs/search.md)."""
