"""Contracts, hookspecs, manifest, assembly, the backbone and accounting."""

if "." not in __name__:
    raise ImportError("import bestiary.core, not core: the repository root is the package")
