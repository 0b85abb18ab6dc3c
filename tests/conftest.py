"""Makes sure that the tests run this checkout, installed or not, whatever the folder is called."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _installed_root() -> Path | None:
    spec = importlib.util.find_spec("bestiary")
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


if _installed_root() != ROOT:
    links = ROOT / ".links"
    links.mkdir(exist_ok=True)
    link = links / "bestiary"
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    sys.path.insert(0, str(links))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(links), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name in [name for name in sys.modules if name == "bestiary" or name.startswith("bestiary.")]:
        del sys.modules[name]

import bestiary  # noqa: E402

if Path(bestiary.__file__).resolve().parent != ROOT:
    raise RuntimeError(f"bestiary comes from {bestiary.__file__}, not from this checkout {ROOT}; run `make test`, or pip install -e . here")
bestiary.__path__[:] = [str(ROOT)]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
