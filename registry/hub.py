"""Single files of a Hub repository, through huggingface_hub and its cache."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import BestiaryError


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
