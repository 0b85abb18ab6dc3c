"""Text in, batches out: sources, tokenizers, packing, order."""
