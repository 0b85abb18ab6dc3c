"""Models with the methods that people know from the Hub: `from_pretrained`, `save_pretrained`, `push_to_hub`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin

from ..core.backbone import CausalLM
from ..core.errors import BestiaryError


class HubModel(CausalLM, ModelHubMixin, library_name="bestiary"):
    """What `bestiary.load` and `bestiary.create_model` return.

        model = bestiary.HubModel.from_pretrained("organisation/name", revision="v1")
        model.push_to_hub("organisation/other", private=True)

    Only safetensors are written and read, in shards, and never a pickle.
    """

    def __new__(cls, *args: Any, **options: Any) -> HubModel:
        """A model; the mixin's own would keep the arguments as a config, and the manifest is one already."""
        return object.__new__(cls)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Writes the model into a folder, complete or not at all.

        Args:
            save_directory: as for `bestiary.save`.
            options: `max_shard_size`, `dtype` as for `bestiary.save`; `push_to_hub=True` with `repo_id` (the folder's name by
                default) and the options of `push_to_hub` publish it as well.

        Returns:
            The address of the commit when it was published.
        """
        publish, repo = options.pop("push_to_hub", False), options.pop("repo_id", None)
        written = {key: options[key] for key in ("max_shard_size", "dtype") if key in options}
        if not publish and (unknown := sorted(set(options) - set(written))):
            raise BestiaryError(f"save_pretrained: unknown options {', '.join(unknown)}. It takes max_shard_size, dtype and push_to_hub.")
        self._save_pretrained(Path(save_directory), **written)
        return self.push_to_hub(repo or Path(save_directory).name, **options) if publish else None

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, repo_id: str, *, commit_message: str | None = None, branch: str | None = None, create_pr: bool = False, **options: Any
    ) -> str:
        """Publishes the model as one commit, written and sent one shard at a time.

        Args:
            repo_id: `organisation/name`, or `file:path`.
            commit_message: of the commit.
            branch: is created if need be; `main` by default.
            create_pr: open a pull request instead.
            options: as for `bestiary.push`: `private`, `license`, `base_model`, `max_shard_size`, `dtype`, `token`.

        Returns:
            The address of the commit or pull request; for a registry on disk, its reference.
        """
        from .push import push

        done = push(self, repo_id, message=commit_message, revision=branch, pull_request=create_pr, **options)
        return done.pull_request or done.url or done.target

    def _save_pretrained(self, save_directory: Path, **options: Any) -> None:
        from .save import save

        save(self, save_directory, **options)

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> HubModel:
        """A model with the weights of a checkpoint; `model.load_report` says what was taken from where.

        Args:
            pretrained_model_name_or_path: as for `bestiary.load`.
            revision: branch, tag or commit; also after an @ in the name.
            token: for the Hub; by default the one that you are logged in with.
            local_files_only: take what is in the cache.
            options: as for `bestiary.load`: `dtype`, `device`, `set`, `init` and more. Where the cache lies is set by HF_HOME.
        """
        from .load import load
        from .repository import open_repository

        reference = f"{pretrained_model_name_or_path}@{revision}" if revision else str(pretrained_model_name_or_path)
        return load(open_repository(reference, offline=local_files_only, token=token), **options)
