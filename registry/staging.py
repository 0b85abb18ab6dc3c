"""Writing a folder so that it is complete or not there: in a sibling first, then moved into place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from ..core.errors import BestiaryError

OURS = (
    "config.json",
    "generation_config.json",
    "bestiary.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)
"""Files that saving replaces; others in a checkpoint's folder, such as its tokenizer, stay."""


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary sibling of `folder` that takes its place when the block ends well, and vanishes when it does not.

    Raises:
        BestiaryError: there is something at `folder` that is no checkpoint.
    """
    folder = folder.absolute()
    check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".writing", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        replace_folder(folder, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Refuses a folder that holds something other than a checkpoint.

    Raises:
        BestiaryError: says what is there.
    """
    if folder.exists() and not folder.is_dir():
        raise BestiaryError(f"{folder}: this is a file. Name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in OURS):
        raise BestiaryError(
            f"{folder}: it holds files that are no checkpoint, and will not be overwritten. Name another folder, or empty it."
        )


def replace_folder(folder: Path, temporary: Path) -> None:
    """Puts `temporary` in the place of `folder`, and moves what is not ours from the old one over."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = temporary.with_suffix(".replaced")
    folder.rename(old)
    try:
        temporary.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    for path in old.iterdir():
        if not any(fnmatch(path.name, pattern) for pattern in OURS):
            path.rename(folder / path.name)
    shutil.rmtree(old)
