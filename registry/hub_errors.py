"""What the Hub, the network and the disk answer, as errors that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..core.errors import BestiaryError, Problem

T = TypeVar("T")

STATUS = {
    400: ("it takes the request for a mistake", "What it says is above; update huggingface_hub if it is old."),
    401: ("it does not accept your token, or needs one", "Run `hf auth login`, or set HF_TOKEN to a token that may read and write there."),
    403: ("your token may not do this", "Use a token with write access to that organisation, or ask its owners."),
    404: ("there is nothing of this name that you may see", "Check the spelling; for a private repository run `hf auth login`."),
    409: ("it is in the way: something of this name exists, or another commit is being made", "Wait a moment and run the command again."),
    412: ("someone else committed since this began, and nothing was changed", "Look at that commit, then run the command again."),
    413: ("it is too large for it", "Write smaller shards with --max-shard-size."),
    416: ("the file has fewer bytes than its header says", "The repository is damaged: ask its owner to push it again."),
    429: ("you asked too often", "Wait some minutes, or log in for a higher limit. What is done is kept: run the command again."),
}
LATER = "Try again later; what is done is kept."
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what huggingface_hub, its network stack and the disk raise into a `BestiaryError`.

    Args:
        what: the subject of its message, such as a reference.
    """
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except BestiaryError:
        raise
    except errors.GatedRepoError as error:
        remedy = "Open its page on the Hub, accept its terms, and run `hf auth login`."
        raise BestiaryError(Problem("its owners ask for an agreement first.", what, remedy)) from error
    except errors.RevisionNotFoundError as error:
        remedy = "Give a branch, a tag or a commit that it has after the @."
        raise BestiaryError(Problem("there is no such revision.", what, remedy)) from error
    except errors.IncompleteSnapshotError as error:
        raise BestiaryError(Problem(f"not all of its files are here: {_brief(error)}.", what, "Fetch it while online first.")) from error
    except errors.HfHubHTTPError as error:
        raise BestiaryError(_answered(error, what)) from error
    except (errors.LocalEntryNotFoundError, errors.RevisionResolutionError, errors.OfflineModeIsEnabled) as error:
        raise BestiaryError(_unreachable(error, what)) from error
    except httpx2.TransportError as error:
        fact = f"the connection failed: {_brief(error)}."
        raise BestiaryError(Problem(fact, what, "Check the network, then run the command again; it goes on where it was.")) from error
    except errors.HFValidationError as error:
        raise BestiaryError(Problem(f"{_brief(error)}.", what, "Repositories are called organisation/name.")) from error
    except OSError as error:
        raise BestiaryError(_disk(error, what)) from error


def persistent(call: Callable[[], T], *, tries: int = 3, wait: float = 1.0) -> T:
    """The result of a short request, asked again where the Hub is busy; huggingface_hub does so for files and listings only."""
    import time

    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    for attempt in range(tries):
        try:
            return call()
        except (HfHubHTTPError, RevisionResolutionError) as error:
            response = getattr(error if isinstance(error, HfHubHTTPError) else error.__cause__, "response", None)
            if attempt == tries - 1 or response is None or not (response.status_code in (408, 429) or response.status_code >= 500):
                raise
            after = response.headers.get("Retry-After", "")
            time.sleep(min(float(after), 60.0) if after.isdecimal() else wait * 2**attempt)
    raise AssertionError


def _answered(error: Exception, what: str) -> Problem:
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", 0)
    if code >= 500:
        return Problem(f"the Hub has trouble of its own (HTTP {code}).", what, LATER)
    fact, remedy = STATUS.get(code, (_brief(error), "Check the request."))
    said = getattr(error, "server_message", None)
    return Problem(f"the Hub refuses (HTTP {code}): {fact}{f'. It says: {said}' if said else ''}.", what, remedy)


def _unreachable(error: Exception, what: str) -> Problem:
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        return _answered(cause, what)
    return Problem("it is not in the local cache, and the Hub cannot be reached.", what, "Check the name, or the network.")


def _disk(error: OSError, what: str) -> Problem:
    if error.errno in FULL:
        return Problem("the disk is full.", what, "Make room, or set HF_HOME to a larger disk, and run the command again; it goes on.")
    if "onsistency check failed" in str(error):
        fact = "the Hub sent another number of bytes than it had announced"
        return Problem(f"{fact}.", what, "Run the command again; if it stays so, the repository is damaged.")
    return Problem(f"{_brief(error)}.", what, "Check the path and its permissions.")


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".")[:300] if text else type(error).__name__
