"""Files of a Hub repository, through huggingface_hub and its cache."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import BestiaryError

WEIGHTS = ("config.json", "generation_config.json", "bestiary.json", "model*.safetensors", "model.safetensors.index.json")
"""The files of a repository that loading may need."""


def fetch(reference: str, filename: str) -> Path | None:
    """The local copy of one file of `organisation/name[@revision]`; None when the repository does not hold it.

    Raises:
        BestiaryError: the repository or revision is unknown, or the Hub cannot be reached and the file is not cached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repo, _, revision = reference.partition("@")
    try:
        return Path(hf_hub_download(repo, filename, revision=revision or None))
    except RepositoryNotFoundError as error:
        raise BestiaryError(f"The Hub has no repository '{repo}' that you may read. Check the spelling, or run `hf auth login`.") from error
    except LocalEntryNotFoundError as error:
        raise BestiaryError(
            f"'{reference}' is neither in the catalog nor a local path, and the Hub cannot be reached for {filename}. "
            "Check the name with `bestiary list`, or the network."
        ) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise BestiaryError(f"{filename} of '{reference}' cannot be fetched: {error}") from error


def snapshot(reference: str) -> Path:
    """The local folder of `organisation/name[@revision]` with its configs, index and safetensors; pickles are never fetched.

    Raises:
        BestiaryError: the repository or revision is unknown, or the Hub cannot be reached and not everything is cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repo, _, revision = reference.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(WEIGHTS)))
    except RepositoryNotFoundError as error:
        raise BestiaryError(f"The Hub has no repository '{repo}' that you may read. Check the spelling, or run `hf auth login`.") from error
    except LocalEntryNotFoundError as error:
        raise BestiaryError(
            f"There is no folder '{reference}', and the Hub cannot be reached for a repository of that name. Check it, or the network."
        ) from error
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise BestiaryError(f"'{reference}' cannot be fetched: {error}") from error
