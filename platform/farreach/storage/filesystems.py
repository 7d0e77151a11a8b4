"""The filesystem behind a URI, as pyarrow knows it, and its failures in words that help a user.

Who may read and write is known from the environment alone: `AWS_*` (with `AWS_ENDPOINT_URL` for
other servers of that protocol, such as MinIO), `GOOGLE_APPLICATION_CREDENTIALS`, or whatever else
the libraries of a cloud find by themselves.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from functools import lru_cache
from typing import Any

from farreach.errors import StorageError

CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 3.0, 10.0
GCS_RETRY_S = 3

_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIAL|FORBIDDEN|HTTP status 40[13]"
    r"|PERMISSION_DENIED|UNAUTHENTICATED|OAuth2|AuthenticationFailed|Unauthorized",
    re.IGNORECASE,
)
_MISSING = re.compile(
    r"NO_SUCH_BUCKET|Bucket '.*' not found|bucket does not exist|container does not exist",
    re.IGNORECASE,
)
_FOREIGN = ("AWS Error", "google::cloud", "Azure")
_S3 = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN if they are temporary"
_GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS"
_CREDENTIALS = {"s3": _S3, "gs": _GOOGLE, "gcs": _GOOGLE}


def connected(uri: str) -> tuple[Any, str]:
    """The filesystem of a URI and the path in it, without a slash at the end.

    Raises:
        StorageError: no such kind of URI, it is malformed, or a bucket's region is not to be had.
    """
    parts = urllib.parse.urlsplit(uri)
    try:
        if parts.scheme == "s3" and parts.username is None:
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            files = _s3(parts.netloc, parts.query, _endpoint(), region)
            return files, f"{parts.netloc}{parts.path}".rstrip("/")
        return _other(uri, parts)
    except (OSError, ValueError, NotImplementedError) as error:
        text = str(error)
        if is_foreign(text):
            raise explained(uri, parts.netloc, uri, text)[0] from error
        raise StorageError(
            f"{uri}: is no place that pyarrow's filesystems reach: {_short(text)}. Give a URI such "
            "as s3://bucket/folder, gs://bucket/folder or abfs://container@account/folder."
        ) from error


@lru_cache(maxsize=16)
def _s3(bucket: str, query: str, endpoint: str | None, region: str | None) -> Any:
    """Of the environment and the URI's query; it gives up in seconds, for others try again."""
    from pyarrow import fs

    given = dict(urllib.parse.parse_qsl(query))
    endpoint, region = given.get("endpoint_override", endpoint), given.get("region", region)
    if region is None:
        region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
    options = {"scheme": given["scheme"]} if "scheme" in given else {}
    return fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        allow_delayed_open=True,  # one request for a small object instead of three
        **options,
    )


def _other(uri: str, parts: urllib.parse.SplitResult) -> tuple[Any, str]:
    from pyarrow import fs

    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
        # Google's library tries for a quarter of an hour.
        limit = f"retry_limit_seconds={GCS_RETRY_S}"
        uri += f"&{limit}" if parts.query else f"?{limit}"
    files, path = fs.FileSystem.from_uri(uri)
    return files, str(path).rstrip("/")


def is_foreign(text: str) -> bool:
    """Whether an error's text is of a storage, rather than of this machine's disk."""
    return any(mark in text for mark in _FOREIGN)


def explained(uri: str, bucket: str, place: str, text: str) -> tuple[StorageError, bool]:
    """What a storage's error means for a user, and whether it makes sense to try again.

    Args:
        uri: of the run or the data.
        bucket: that it is in.
        place: URI of what was read or written.
        text: of the error.
    """
    if _MISSING.search(text):
        return missing(uri, bucket), False
    if _DENIED.search(text):
        mend = _CREDENTIALS.get(uri.partition(":")[0], "the credentials of that storage")
        return StorageError(
            f"{place}: access is denied{_where(uri)} ({_short(text)}). Set {mend} in the "
            "environment of every process that needs it, to what may read and write there."
        ), False
    return StorageError(
        f"{place}: cannot be reached{_where(uri)}: {_short(text)}. Look at the network and, if the "
        "storage is not the cloud's own, at AWS_ENDPOINT_URL."
    ), True


def missing(uri: str, bucket: str) -> StorageError:
    """That there is no such bucket."""
    return StorageError(
        f"{uri}: there is no bucket {bucket!r}{_where(uri)}. Correct the name, or make the bucket "
        "first."
    )


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _where(uri: str) -> str:
    endpoint = _endpoint() if uri.startswith("s3:") else None
    return f" at {endpoint}" if endpoint else ""


def _short(text: str) -> str:
    """An error's text in one line, without what only the server's owner can use."""
    text = re.sub(r"\s*\(Request ID:[^)]*\)|\. Detail:.*", "", " ".join(text.split()))
    return text[:300].rstrip(".")
