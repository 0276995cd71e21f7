"""Where a base's words come from: learned embeddings of a vocabulary, or the cached states of a frozen encoder."""

from torch import Tensor, nn

from train.batches import WordBatch


class WordEmbedding(nn.Module):
    """Learned vectors of the words of a vocabulary; 0 is padding."""

    ordered = False  # a word's vector says nothing of its place or neighbours

    def __init__(self, vocabulary_size: int, width: int):
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=0)
        nn.init.uniform_(self.embedding.weight[1:], -0.1, 0.1)

    def forward(self, batch: WordBatch) -> Tensor:
        """``[B, T, width]``."""
        return self.embedding(batch.words)
