"""What is measured of a model before and after each phase; kept on disk, so that it is measured once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...registry.load import compute_dtype, load
from ..data.dataset import Data
from ..evaluation.needle import Retrieval, retrieval
from ..evaluation.positions import Documents, PositionLoss, long_documents, loss_by_position
from ..training.device import choose
from ..training.result import write_json
from .options import ExtendOptions


@dataclass(frozen=True)
class Probe:
    """Both measurements of one model."""

    name: str
    positions: PositionLoss
    needle: Retrieval


class Prober:
    """Measures models on the same held-out documents."""

    def __init__(self, options: ExtendOptions, data: Data, folder: Path, *, device: str) -> None:
        self.options, self.data, self.folder, self.device = options, data, folder, device
        self.documents: Documents = long_documents(data, options.positions.length, options.positions.documents)

    def __call__(self, name: str, weights: Path, changes: Mapping[str, Any]) -> Probe:
        """The probe of the model in `weights` with `changes` of its manifest; read back where nothing has changed since."""
        path, digest = self.folder / f"{name.replace(' ', '-').replace(',', '')}.json", self._digest(weights, changes)
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["digest"] == digest:
                return Probe(name, PositionLoss.read(data["positions"]), Retrieval.read(data["needle"]))
        model = load(weights, device=choose(self.device), set=changes, dtype=compute_dtype(weights, set=changes))
        positions = loss_by_position(model, self.documents)
        needle = retrieval(model, self.data.tokenizer, self.documents, self.options.needle)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"name": name, "digest": digest, "positions": asdict(positions), "needle": asdict(needle)})
        return Probe(name, positions, needle)

    def _digest(self, weights: Path, changes: Mapping[str, Any]) -> str:
        asked = [self.options.positions.model_dump(mode="json"), self.options.needle.model_dump(mode="json"), self.data.digest]
        parts = json.dumps([asked, dict(changes), newest(weights), sorted(path.name for path in weights.iterdir())], default=str)
        return hashlib.sha256(parts.encode()).hexdigest()


def newest(weights: Path) -> int:
    """When the weights in a folder were last written, in nanoseconds."""
    return max(path.stat().st_mtime_ns for path in weights.glob("*.safetensors"))
