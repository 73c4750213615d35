"""What goes wrong with the disk, as errors of ours: the one seam for `OSError` here."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType

from backends.errors import GatewayError, InvalidRequest
from proxy.stored_responses import StorageFailed

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_AGAIN = MappingProxyType({b"x-should-retry": b"false"})


class InsufficientStorage(GatewayError):
    """The disk is full, or as full as it may get. Sending it all again at once would not help: an operator has to."""

    status = 507
    code = "insufficient_storage"
    headers = _NOT_AGAIN


class StorageQuotaExceeded(InvalidRequest):
    """The project's files are as many bytes as they may be. Deleting some of them helps."""

    status = 413
    code = "storage_quota_exceeded"


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raises `InsufficientStorage` or `StorageFailed` for an `OSError` inside. Messages name no path."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InsufficientStorage("There is no room left for files on this gateway's disk.") from error
        raise StorageFailed("The disk with the files cannot be used now.", retry_after_s=5.0) from error
