"""Bricks that several components share: linear layers, RMSNorm, RoPE."""
