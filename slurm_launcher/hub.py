"""The Hugging Face hub, asked through huggingface_hub: the only place that speaks to it.

Where it is (HF_ENDPOINT), what is let in (HF_TOKEN, or the file that `hf auth login` writes) and where downloads lie
(HF_HUB_CACHE, HF_HOME) are said by the library's own variables. All its errors become `HubError`, one sentence each,
which never quotes a token.
"""

from __future__ import annotations

import errno
import io
import json
import os
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from .gguf_header import BadGguf, configuration, parse_header
from .weights import hub_cache

TIMEOUT_S = 20.0
_GGUF_HEAD = 1 << 20


class HubError(Exception):
    """What is wrong and what to do, in one sentence."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit: paths -> bytes."""

    repository: str
    commit: str
    sizes: Mapping[str, int]


def listing(repository: str, revision: str | None = None) -> Listing:
    """Raises `HubError`."""
    with sentences(repository):
        info = _api().model_info(repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
    if info.sha is None:
        raise HubError(f"the hub does not say which commit {repository} is at")
    return Listing(repository, info.sha, sizes)


def parameters(listed: Listing) -> dict[str, int]:
    """How many there are of each dtype, by the headers of the safetensors files; {} where they are not to be read."""
    with sentences(listed.repository):
        try:
            found = _api().get_safetensors_metadata(listed.repository, revision=listed.commit)
        except (NotASafetensorsRepoError, SafetensorsParsingError):
            return {}
    return {str(dtype): int(count) for dtype, count in found.parameter_count.items()}


def config(listed: Listing) -> dict[str, Any]:
    """`config.json`, the one file that is downloaded for it; {} where there is none."""
    if "config.json" not in listed.sizes:
        return {}
    with sentences(listed.repository):
        path = hf_hub_download(
            listed.repository,
            "config.json",
            revision=listed.commit,
            cache_dir=hub_cache(os.environ),
            endpoint=_endpoint(),
            etag_timeout=TIMEOUT_S,
        )
    try:
        value = json.loads(Path(path).read_bytes())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def gguf_configuration(listed: Listing, name: str) -> dict[str, Any]:
    """What the header of a GGUF file says, of which only the first part is read; {} where that is not enough."""
    url = hf_hub_url(listed.repository, name, revision=listed.commit, endpoint=_endpoint())
    request = urllib.request.Request(url, headers={"Range": f"bytes=0-{_GGUF_HEAD - 1}"})  # noqa: S310
    if token := get_token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for where the file really lies
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return configuration(parse_header(io.BytesIO(answer.read(_GGUF_HEAD))))
    except (OSError, BadGguf):
        return {}


def download(listed: Listing, names: Sequence[str], to: Path | None) -> Path:
    """These files into a directory, or into the hub's cache. What is there already, in part too, is not fetched again.

    Returns the directory that holds them. Raises `HubError`.
    """
    with sentences(listed.repository), _without_bars():
        path = snapshot_download(
            listed.repository,
            revision=listed.commit,
            allow_patterns=[_literally(name) for name in names],
            local_dir=to,
            cache_dir=hub_cache(os.environ),
            endpoint=_endpoint(),
            etag_timeout=TIMEOUT_S,
        )
    return Path(path)


def remember(listed: Listing) -> None:
    """Make this commit what the cache's `main` means, so that engines that are offline find it by the hub id."""
    ref = hub_cache(os.environ) / f"models--{listed.repository.replace('/', '--')}" / "refs" / "main"
    ref.parent.mkdir(parents=True, exist_ok=True)
    new = ref.with_suffix(".new")
    new.write_text(listed.commit)
    new.replace(ref)


@contextmanager
def _without_bars() -> Iterator[None]:
    """The library draws bars of its own; `fetching` looks at the files instead."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _literally(name: str) -> str:
    """For fnmatch."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _api() -> HfApi:
    return HfApi(endpoint=_endpoint(), library_name="slurmgate")


@contextmanager
def sentences(repository: str) -> Iterator[None]:
    """The library's errors -> `HubError`."""
    try:
        yield
    except (HFValidationError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise HubError(_sentence(error, repository, _endpoint() or "https://huggingface.co")) from None
    except Exception as error:
        # httpx's errors, or requests' with older releases of the library: neither is ours to import
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpcore", "requests", "urllib3"):
            raise
        where = _endpoint() or "https://huggingface.co"
        if type(error).__name__ in ("RemoteProtocolError", "ReadError", "ReadTimeout", "ChunkedEncodingError"):
            raise HubError(f"the connection to {where} broke: run the command again, it goes on where it was") from None
        raise HubError(_unreachable(where)) from None


def _sentence(error: Exception, repository: str, where: str) -> str:  # noqa: PLR0911  # one each
    match error:
        case HFValidationError():
            return f"{repository!r} is neither a path on this machine nor a hub id such as ORGANISATION/MODEL"
        case GatedRepoError():
            return (
                f"{repository} is gated: ask for access at {where}/{repository}, "
                "and set HF_TOKEN to a token of that account"
            )
        case RepositoryNotFoundError():
            shown = "with the token that was shown" if get_token() else "without a token (HF_TOKEN)"
            return f"the hub has no model {repository}, or none that can be seen {shown}"
        case LocalEntryNotFoundError():
            return _unreachable(where)
        case EntryNotFoundError():
            return f"a file of {repository} is gone from the hub"
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so the hub is not asked"
        case HfHubHTTPError() if error.response is not None and error.response.status_code == 401:
            return "the hub refuses the token (HF_TOKEN, or the file that `hf auth login` wrote)"
        case HfHubHTTPError() if error.response is not None:
            return f"the hub answered {error.response.status_code} when asked for {repository}"
        case OSError(errno=errno.ENOSPC):
            return "the disk is full"
        case OSError(filename=str(path)):
            return f"{path} cannot be read or written: {error.strerror}"
        case _:
            return _unreachable(where)


def _unreachable(where: str) -> str:
    return f"{where} cannot be reached from here; fetch on a machine with a network, or set HTTPS_PROXY or HF_ENDPOINT"
