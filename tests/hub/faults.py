"""What can go wrong on the way, on request: matched by method and path, a stated number of times."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Status:
    """Answer with an error instead."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """Close the connection after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Slow:
    """Send the body in pieces of `piece` bytes with a pause before each."""

    pause: float
    piece: int = 65536


@dataclass(frozen=True)
class Shorter:
    """Send a body with so many bytes missing, as if that were all of it."""

    by: int = 1


@dataclass(frozen=True)
class Flipped:
    """Send a body of the right size in which one byte is another."""


@dataclass(frozen=True)
class Race:
    """Someone else commits just before this request is looked at."""


Action = Status | Cut | Slow | Shorter | Flipped | Race


@dataclass
class Fault:
    """An action for requests whose `METHOD path` matches."""

    method: str
    pattern: str
    action: Action
    times: int


class Faults:
    """The faults that are still to come."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, method: str, pattern: str, action: Action, times: int) -> None:
        self._faults.append(Fault(method, pattern, action, times))

    def clear(self) -> None:
        self._faults.clear()

    def take(self, method: str, path: str) -> Action | None:
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault.action
        return None
