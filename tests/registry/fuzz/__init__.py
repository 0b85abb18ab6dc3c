"""Hostile checkpoints: mutated headers, indices, configs, manifests and files, against everything that reads them.

python -m tests.registry.fuzz --cases 100000 --seed 0
"""
