"""Cards: README.md and croissant.json of a store."""
