"""Floor 3: retrieval models, SelfAlign's two modules, losses, batches, the training loop, checkpoints."""
