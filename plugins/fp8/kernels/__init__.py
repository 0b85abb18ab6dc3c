"""Triton kernels of FP8 training, one file each; every one computes what `quantize` or `backends.emulation` defines."""
