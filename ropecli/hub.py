"""One file of a Hugging Face Hub repository, through huggingface_hub: its cache, its settings, its errors in words."""

from collections.abc import Sequence
from pathlib import Path

from ropecli.errors import BadCheckpoint

PATIENCE = 5.0
"""Seconds that the Hub has to answer, where HF_HUB_ETAG_TIMEOUT does not say less."""


def fetched_config(source: str, repo: str, revision: str | None, names: Sequence[str]) -> Path:
    """The local copy of the first of these files that a Hub repository has; nothing else is fetched.

    `HF_HOME`, `HF_HUB_OFFLINE` and the like are honoured. Raises BadCheckpoint, with `source` as `where`.
    """
    for name in names:
        found = _fetched_file(source, repo, revision, name)
        if found is not None:
            return found
    raise BadCheckpoint(f"the Hub repository has none of {', '.join(names)}", where=source)


def _fetched_file(source: str, repo: str, revision: str | None, name: str) -> Path | None:
    """One file of a Hub repository, from the cache or the network; None where the repository does not have it."""
    # half a second that local files do not pay
    from huggingface_hub import errors, hf_hub_download, is_offline_mode, try_to_load_from_cache  # noqa: PLC0415

    try:
        if not isinstance(try_to_load_from_cache(repo, name, revision=revision), str) and not is_offline_mode():
            _reach(source, repo, revision, name)
        return Path(hf_hub_download(repo, name, revision=revision))
    except errors.GatedRepoError as error:
        problem, hint = "the Hub repository is gated", "accept its terms on the Hub, then `hf auth login`"
        raise BadCheckpoint(problem, where=source, hint=hint) from error
    except errors.RevisionNotFoundError as error:
        problem, hint = f"the Hub repository has no revision {revision}", "look at its branches and tags"
        raise BadCheckpoint(problem, where=source, hint=hint) from error
    except errors.RepositoryNotFoundError as error:
        problem = "no such file or folder, and no such repository on the Hub"
        hint = "check the spelling; a private repository needs `hf auth login`"
        raise BadCheckpoint(problem, where=source, hint=hint) from error
    except errors.LocalEntryNotFoundError as error:
        problem = "no such file or folder; as a Hub repository it is not in the cache and cannot be fetched"
        hint = "check the path, and for a Hub repository the network, HF_HUB_OFFLINE and HF_HOME"
        raise BadCheckpoint(problem, where=source, hint=hint) from error
    except errors.EntryNotFoundError:
        return None
    except (OSError, errors.HFValidationError) as error:
        problem = f"the Hub did not answer as expected: {_first_line(error)}"
        raise BadCheckpoint(problem, where=source, hint="try again later") from error


def _reach(source: str, repo: str, revision: str | None, name: str) -> None:
    """Ask once, without the retries of a download: most names that lead here are mistyped paths.

    Raises BadCheckpoint where nothing answers, and the errors of huggingface_hub.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url  # noqa: PLC0415

    try:
        get_hf_file_metadata(
            hf_hub_url(repo, name, revision=revision), timeout=min(constants.HF_HUB_ETAG_TIMEOUT, PATIENCE)
        )
    except (OSError, errors.HFValidationError):
        raise
    except Exception as error:  # which HTTP library stands behind it differs by version
        problem = "no such file or folder; as a Hub repository it cannot be fetched: the Hub does not answer"
        hint = "check the path, and for a Hub repository the network and HF_HUB_OFFLINE"
        raise BadCheckpoint(problem, where=source, hint=hint) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
