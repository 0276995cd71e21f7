"""Search in the embeddings of a whole data set (docs/search.md)."""
