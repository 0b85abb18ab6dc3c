"""Times one mode of one engine in a process of its own and prints one JSON line.

    python -m benchmarks.worker ours decode-1 CHECKPOINT

Engines: `ours`, and `transformers` with an experts implementation and optional compilation, as in
`transformers:batched_mm+compile`. Decoding is fed given tokens, since greedy decoding of random weights falls into loops
that keep routing to the same experts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.limits import best

TRAIN_BATCH, TRAIN_LENGTH, PROMPT, CONTEXT, STEPS = 4, 512, 1024, 512, 64
MODES = ("train", "train+adamw", "prefill", "decode-1", "decode-8")


class Ours:
    """Bestiary's engine."""

    def __init__(self, checkpoint: Path, mode: str) -> None:
        import bestiary
        from bestiary.core.host import keep_freed_memory

        keep_freed_memory()
        self.model = bestiary.load(checkpoint, dtype=None)
        if mode.startswith("train"):
            master = bestiary.create_model(self.model.manifest)
            master.load_state_dict(self.model.state_dict())
            self.model = master
        self.parallelism = self.model.manifest.parallelism.build(self.model.manifest.site)

    def backward(self, ids: torch.Tensor) -> None:
        from bestiary.core.contracts import Batch

        self.parallelism.step(self.model, Batch(ids[:, :-1], ids[:, 1:]))

    def optimizer(self) -> Any:
        """As DeepSeek-V3 trains: fp32 master weights, bf16 moments."""
        from bestiary.lab.training.adamw import CompactAdamW

        return CompactAdamW(self.model.parameters(), lr=1e-5, betas=(0.9, 0.95), eps=1e-8)

    def prefill(self, ids: torch.Tensor) -> Any:
        cache = self.model.new_cache(len(ids), ids.shape[1] + STEPS)
        self.model.logits(self.model.hidden(ids, cache=cache).normed[:, -1]).argmax(dim=-1)
        return cache

    def decode(self, cache: Any, ids: torch.Tensor) -> None:
        self.model(ids, cache=cache)[:, -1].argmax(dim=-1)

    def rewind(self, cache: Any) -> Any:
        cache.crop(CONTEXT)
        return cache


class Transformers:
    """transformers, with one of its experts implementations, eager or compiled."""

    def __init__(self, checkpoint: Path, mode: str, variant: str) -> None:
        from transformers import AutoModelForCausalLM

        self.experts, _, compiled = variant.partition("+")
        self.compiled = bool(compiled)
        dtype = torch.bfloat16
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
        self.model.set_experts_implementation("grouped_mm" if self.experts == "batched_mm" else self.experts)
        self.call = torch.compile(self.model) if self.compiled and mode.startswith("train") else self.model

    def backward(self, ids: torch.Tensor) -> None:
        self.call(ids, labels=ids).loss.backward()

    def optimizer(self) -> Any:
        """bf16 weights and moments, torch's fused kernel."""
        return torch.optim.AdamW(self.model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)

    def prefill(self, ids: torch.Tensor) -> Any:
        from transformers import DynamicCache, StaticCache

        cache = StaticCache(self.model.config, max_cache_len=CONTEXT + STEPS) if self.compiled else DynamicCache(config=self.model.config)
        self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.model.set_experts_implementation(self.experts)
        if self.compiled:
            self.call = torch.compile(self.model)
        self.position = ids.shape[1]
        return cache

    def decode(self, cache: Any, ids: torch.Tensor) -> None:
        position = torch.tensor([[self.position]])
        self.call(ids, past_key_values=cache, position_ids=position, use_cache=True).logits[:, -1].argmax(dim=-1)
        self.position += 1

    def rewind(self, cache: Any) -> Any:
        for layer in cache.layers if self.compiled else ():
            layer.cumulative_length.fill_(CONTEXT)
        if not self.compiled:
            cache.crop(CONTEXT - self.position)
        self.position = CONTEXT
        return cache


def run(engine: Any, mode: str) -> float:
    """Tokens per second of the fastest repetition."""
    vocabulary = 8192
    if mode.startswith("train"):
        ids = torch.randint(vocabulary, (TRAIN_BATCH, TRAIN_LENGTH + 1))
        return TRAIN_BATCH * TRAIN_LENGTH / best(_training_step(engine, ids, with_optimizer="adamw" in mode), seconds=12)
    with torch.inference_mode():
        if mode == "prefill":
            ids = torch.randint(vocabulary, (1, PROMPT))
            return PROMPT / best(lambda: engine.prefill(ids), seconds=8)
        batch = int(mode.rpartition("-")[2])
        return batch * STEPS / _decoding(engine, batch, vocabulary)


def _training_step(engine: Any, ids: torch.Tensor, *, with_optimizer: bool) -> Callable[[], None]:
    engine.model.train()
    optimizer = engine.optimizer()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        engine.backward(ids)
        if with_optimizer:
            optimizer.step()

    return step


def _decoding(engine: Any, batch: int, vocabulary: int) -> float:
    """Seconds of the fastest run of STEPS steps."""
    cache = engine.prefill(torch.randint(vocabulary, (batch, CONTEXT)))
    given = torch.randint(vocabulary, (STEPS, batch, 1))
    for ids in given[:4]:
        engine.decode(cache, ids)
    fastest, end = float("inf"), time.perf_counter() + 10
    while time.perf_counter() < end:
        cache = engine.rewind(cache)
        start = time.perf_counter()
        for ids in given:
            engine.decode(cache, ids)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def main() -> None:
    name, mode, checkpoint = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    engine_name, _, variant = name.partition(":")
    engine = Ours(checkpoint, mode) if engine_name == "ours" else Transformers(checkpoint, mode, variant)
    print(json.dumps({"engine": name, "mode": mode, "rate": run(engine, mode)}))


if __name__ == "__main__":
    main()
