"""Speed as ratios measured in one run: ours, transformers, and the machine's own limits."""
