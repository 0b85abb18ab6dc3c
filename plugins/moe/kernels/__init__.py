"""Triton kernels of the mixture of experts: the router, rows on their way to experts and back, and products of experts in 16 bits."""
