"""What a test holds in its hand: a running Hub, ways to fill it, and processes whose client talks to it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .faults import Action, Faults
from .server import TOKEN, Server
from .store import LFS, Blob, Store

ROOT = Path(__file__).resolve().parents[2]


class Hub:
    """A Hub of its own for one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.faults = Store(folder / "hub"), Faults()
        self._server = Server(self.store, self.faults)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return self._server.endpoint

    @property
    def requests(self) -> list[str]:
        """`METHOD path` of every request so far."""
        return self._server.requests

    @property
    def env(self) -> dict[str, str]:
        """The environment of a client that knows this Hub and nothing else."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.folder / "hf-home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": "5",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, repo: str, files: Mapping[str, bytes | Path], *, revision: str = "main", private: bool = False) -> str:
        """Commits files without a client; the id of the commit."""
        made = self.store.repos.get(repo) or self.store.create(repo, private=private)
        held: dict[str, Blob] = {}
        for name, content in files.items():
            if isinstance(content, Path):
                held[name] = self.store.keep_path(name, content)
            else:
                held[name] = self.store.keep(io.BytesIO(content), len(content), lfs=name.endswith(LFS))
        before = made.commit(revision)
        return made.add(revision, {**(before.files if before else {}), **held}, "put").id

    def put_folder(self, repo: str, folder: Path, **options: Any) -> str:
        return self.put(repo, {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}, **options)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The content of a repository."""
        commit = self.store.repos[repo].commit(revision)
        assert commit is not None, f"{repo} has no {revision}"
        return {name: self.store.path(blob.sha256).read_bytes() for name, blob in commit.files.items()}

    def head(self, repo: str, revision: str = "main") -> str:
        return self.store.repos[repo].branches[revision]

    def asked(self, method: str, part: str) -> list[str]:
        """The requests of a method whose path holds `part`."""
        return [request for request in self.requests if request.startswith(f"{method} ") and part in request]

    def fault(self, method: str, pattern: str, action: Action, times: int = 1) -> None:
        self.faults.add(method, pattern, action, times)

    def popen(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """A `bestiary` process whose Hub is this one."""
        return self.start("-m", "bestiary", *arguments, env=env)

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """A Python process whose Hub is this one."""
        command = [sys.executable, *arguments]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env={**self.env, **(env or {})}, cwd=self.folder, **pipes)

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        with self.popen(*arguments, env=env) as process:
            stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def python(self, code: str, env: Mapping[str, str] | None = None) -> str:
        """What a Python program prints whose Hub is this one; fails where it fails."""
        command = [sys.executable, "-c", code]
        pipes: Any = {"capture_output": True, "text": True, "timeout": 120}
        done = subprocess.run(command, env={**self.env, **(env or {})}, cwd=self.folder, **pipes)
        assert done.returncode == 0, done.stderr
        return done.stdout
