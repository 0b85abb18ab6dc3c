"""The catalog of manifests, and checkpoints in the layouts of the Hugging Face Hub."""
