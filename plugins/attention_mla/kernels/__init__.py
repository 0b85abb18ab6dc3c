"""Triton kernels of MLA: attention in expanded form with its backward pass, and absorbed decoding on the cache."""
