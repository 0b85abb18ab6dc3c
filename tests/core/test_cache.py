"""Buffers that grow along the sequence."""

from __future__ import annotations

import pytest
import torch

from bestiary.core.cache import Cache, LayerCache


def layer(capacity=5):
    return LayerCache({"keys": (2, 3), "latent": (4,)}, batch=2, capacity=capacity, device=torch.device("cpu"), dtype=torch.float32)


def step(length):
    return {"keys": torch.randn(2, length, 2, 3), "latent": torch.randn(2, length, 4)}


def test_appending_returns_all_that_is_held_in_the_order_asked():
    cache, first, second = layer(), step(2), step(3)
    cache.append(**first)
    latent, keys = cache.append(latent=second["latent"], keys=second["keys"])
    assert torch.equal(keys, torch.cat((first["keys"], second["keys"]), dim=1))
    assert torch.equal(latent, torch.cat((first["latent"], second["latent"]), dim=1))
    assert cache.length == 5


def test_more_than_the_capacity_is_refused_and_leaves_the_cache_as_it_was():
    cache = layer(capacity=3)
    kept = step(2)
    cache.append(**kept)
    with pytest.raises(ValueError, match="the cache holds 3 positions; 4 were asked for"):
        cache.append(**step(2))
    assert cache.length == 2
    assert torch.equal(cache.append(**step(1))[0][:, :2], kept["keys"])


def test_cropping_rewinds_every_layer_and_never_forwards():
    caches = Cache([layer(), layer()])
    for one in caches.layers:
        one.append(**step(4))
    caches.crop(2)
    assert [one.length for one in caches.layers] == [2, 2]
    caches.crop(5)
    assert caches.length == 2
    new = step(1)
    assert torch.equal(caches.layers[0].append(**new)[0][:, 2:], new["keys"])


def test_bytes_are_counted_from_shapes():
    assert layer().nbytes == 2 * 5 * (2 * 3 + 4) * 4
    assert Cache([layer(), layer()]).nbytes == 2 * layer().nbytes
