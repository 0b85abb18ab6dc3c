"""Checkpoints from one form into another, tensor by tensor: number formats, layouts of experts, names, and sizes of files."""
