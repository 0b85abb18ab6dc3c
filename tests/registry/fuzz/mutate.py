"""Ways of damaging a checkpoint, each decided by a random source that hypothesis can replay and shrink."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

SCALARS: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 2**31, 2**63, 10**9, 10**18, -(10**18), 10**40, 0.5, -0.0, 1e308, 1e-308,
    "", " ", "x", "0", "..", "../secret", "../../secret.safetensors", "/etc/passwd", "/dev/zero", "C:\\x", "a\x00b", "\ud800", "é" * 50,
    "x" * 5000, "F32", "BF16", "F8_E4M3", "I64", "F4", "mla", "moe", "os.system", "__class__", "model.safetensors",
    [], {}, [[]], [1], [0, 0], [0, 10**30], {"use": "moe"}, {"": {}},
]  # fmt: skip
TEXTS = [
    b"", b"{", b"}", b"[]", b"null", b'"x"', b"NaN", b"Infinity", b"{}", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 20_000,
    b"1" * 6000, b'{"a": 1' + b"0" * 5000 + b"}", b'{"a": 1e999999}', b'{"a": 1, "a": 2}', b"\x00" * 64,
]  # fmt: skip


def json_value(data: Any, random: Random) -> Any:
    """A JSON value with one to three changes somewhere inside."""
    for _ in range(random.randrange(1, 4)):
        data = _change(data, random)
    return data


def _change(data: Any, random: Random) -> Any:
    path, node = [], data
    while isinstance(node, dict | list) and node and random.random() < 0.8:
        key = random.choice(sorted(node)) if isinstance(node, dict) else random.randrange(len(node))
        path.append((node, key))
        node = node[key]
    if not path:
        return copy.deepcopy(random.choice(SCALARS))
    parent, key = path[-1]
    action = random.randrange(7)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(node, int | float) and not isinstance(node, bool):
        parent[key] = random.choice([node + 1, node - 1, -node, node * 2, node * 10**6, node / 2])
    elif action == 2 and isinstance(parent, dict):
        parent[random.choice(["", "x", "layers", "../x", "use", "at", "0:2", "__metadata__", key + "x"])] = copy.deepcopy(node)
    elif action == 3 and isinstance(parent, dict):
        other = random.choice(sorted(parent))
        parent[key], parent[other] = parent[other], parent[key]
    elif action == 4:
        nested: Any = copy.deepcopy(random.choice(SCALARS))
        for _ in range(random.choice([1, 5, 60, 300])):
            nested = [nested] if random.random() < 0.5 else {"a": nested}
        parent[key] = nested
    elif action == 5 and isinstance(node, list):
        parent[key] = node * random.choice([2, 50]) if len(node) < 100 else node[::-1]
    else:
        parent[key] = copy.deepcopy(random.choice(SCALARS))
    return data


def text(data: bytes, random: Random) -> bytes:
    """Bytes with one to three changes."""
    for _ in range(random.randrange(1, 4)):
        place, action = random.randrange(len(data) + 1), random.randrange(6)
        if action == 0:
            data = random.choice(TEXTS)
        elif action == 1:
            data = data[:place]
        elif action == 2:
            data = data[:place] + bytes([random.randrange(256)]) + data[place + 1 :]
        elif action == 3:
            data = data[:place] + random.choice(TEXTS)[:2000] + data[place:]
        elif action == 4:
            data = data[:place] + data[place + random.randrange(1, 40) :]
        else:
            data = data[:place] + data[max(0, place - 50) : place] + data[place:]
    return data


def change_json(path: Path, random: Random) -> None:
    """A small file: its values mostly, its bytes sometimes."""
    if random.random() < 0.25:
        path.write_bytes(text(path.read_bytes(), random))
    else:
        path.write_text(json.dumps(json_value(json.loads(path.read_text()), random)))


def change_header(path: Path, random: Random) -> None:
    """The header of a shard; its stated length fits, or does not."""
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header, data = blob[8 : 8 + length], blob[8 + length :]
    if random.random() < 0.2:
        header = text(header, random)
    else:
        header = json.dumps(json_value(json.loads(header), random)).encode()
    stated = len(header) if random.random() < 0.85 else random.choice([0, 1, length - 1, length + 8, 2**31, 2**63, 2**64 - 1, 100_000_001])
    path.write_bytes(stated.to_bytes(8, "little") + header + data)


def change_file(path: Path, random: Random) -> None:
    """What lies in a file's place."""
    outside, action = path.parent.parent / "secret.safetensors", random.randrange(9)
    blob = path.read_bytes()
    path.unlink()
    if action == 0:
        os.mkfifo(path)
    elif action == 1:
        path.mkdir()
    elif action == 2:
        path.symlink_to(path)
    elif action == 3:
        path.symlink_to("/dev/zero")
    elif action == 4:
        path.symlink_to(outside)
    elif action == 5:
        path.write_bytes(text(blob, random))
    elif action == 6:
        path.write_bytes(blob + b"\0" * random.randrange(1, 100))
    elif action == 7:
        with path.open("wb") as file:
            file.write(blob[:16])
            file.truncate(random.choice([len(blob), 10**12]))
    else:
        path.with_name(path.name + random.choice(["", ".bin", " ", "\n"])).write_bytes(blob)


TARGETS: dict[str, tuple[str, Callable[[Path, Random], None]]] = {
    "header": ("*.safetensors", change_header),
    "index": ("*.index.json", change_json),
    "config": ("config.json", change_json),
    "manifest": ("bestiary.json", change_json),
    "file": ("*", change_file),
}
"""What is damaged: which files, and how."""
