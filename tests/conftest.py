"""Makes sure that the tests run this checkout, installed or not, whatever the folder is called; then builders that tests share."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
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
_cache = tempfile.TemporaryDirectory(prefix="bestiary-tests-")
os.environ["BESTIARY_CACHE"] = _cache.name
if "PYTEST_XDIST_WORKER" in os.environ:  # for what tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.hub.hub import Hub  # noqa: E402

torch.set_num_threads(1)  # tensors are tiny here, and threads of several processes would wait for one another
settings.register_profile("bestiary", deadline=None, derandomize=True)
settings.load_profile("bestiary")

MLA = {"use": "mla", "q_lora_rank": 10, "kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7}
GQA = {"use": "gqa", "num_key_value_heads": 1, "head_dim": 6}
DENSE = {"use": "dense", "intermediate_size": 13}
ROUTER = {"use": "sigmoid-group", "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5}
MOE = {"use": "moe", "n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2, "intermediate_size": 9, "router": ROUTER}
PARTS = {"mla": MLA, "gqa": GQA, "dense": DENSE, "moe": MOE}


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """`tiny("mla", "moe", layers=2, **sections)`: data of a manifest with small, awkward sizes; parts by name or as tables."""

    def make(attention: Any = "mla", ffn: Any = "moe", *, layers: int = 2, model: Any = None, **sections: Any) -> dict[str, Any]:
        sizes = {"hidden_size": 14, "num_hidden_layers": layers, "num_attention_heads": 3, "vocab_size": 31}
        attention, ffn = (PARTS[part] if isinstance(part, str) else part for part in (attention, ffn))
        return {"schema": 1, "model": sizes | (model or {}), "block": {"attention": attention, "ffn": ffn}, **sections}

    return make


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """`build(manifest, set=..., dtype=float64, seed=0)`: a model whose every number is large enough to matter, biases and gains too."""
    from bestiary.core.assemble import state

    def make(manifest: Any, *, set: Any = (), dtype: torch.dtype | None = torch.float64, seed: int = 0) -> Any:
        model = bestiary.create_model(manifest, set=set, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in state(model).items():
                gain = tensor.ndim == 1 and name.endswith(".weight")
                tensor.copy_(gain + 0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        return model

    return make


@pytest.fixture(scope="session")
def packed() -> Callable[..., Any]:
    """`packed(rows, length, vocabulary)`: a batch; on request each row holds two documents, or some targets are missing."""
    from bestiary.core.contracts import IGNORE, Batch

    def make(rows: int, length: int, vocabulary: int, *, segments: bool = False, ignored: bool = False, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(vocabulary, (rows, length + 1), generator=generator)
        targets, documents = tokens[:, 1:].clone(), None
        if segments:
            ends = torch.randint(2, length - 1, (rows, 1), generator=generator)
            documents = (torch.arange(length) >= ends).long()
            targets.scatter_(1, ends - 1, IGNORE)
        if ignored:
            targets[torch.rand(rows, length, generator=generator) < 0.2] = IGNORE
        return Batch(tokens[:, :-1], targets, documents)

    return make


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub on this machine, empty, for one test."""
    running = Hub(tmp_path)
    yield running
    running.close()
