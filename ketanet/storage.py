"""Object stores (``s3://``, ``gs://``, ``az://``): the few operations that cohorts need, through obstore.

Credentials, endpoint and region come from the environment alone, as obstore reads it (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_ENDPOINT_URL``, ``AWS_ALLOW_HTTP``, ``AWS_REGION``; ``GOOGLE_...``, ``AZURE_...``).
They are never written anywhere: an address that holds some is refused, and what a library says of a failed request,
which may hold the endpoint's password or a signature, is put into words of our own.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar
from urllib.parse import urlsplit

from ketanet.errors import InputError, KetanetError

if TYPE_CHECKING:
    from zarr.storage import ObjectStore

_T = TypeVar("_T")
_P = ParamSpec("_P")

SCHEMES = ("s3", "gs", "az")
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)})://?(.*)", re.DOTALL)  # pathlib makes one slash of two
_OTHER_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLES = ("AWS_", "GOOGLE_", "AZURE_", "AZURITE_", "KETANET_STORE_")
_NEEDED = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_DENIED = ("AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
_ELSEWHERE = ("AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect")
_ENDPOINTS = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
_BLOCK_BYTES = 16 * 2**20


class State(NamedTuple):
    """Bytes of an object, and the store's tag of what it holds (empty where the store gives none)."""

    size: int
    tag: str


def retry_seconds() -> float:
    """How long a request is tried again, with growing pauses: 60 s, or ``KETANET_STORE_RETRY_SECONDS``. An endpoint
    that restarts or throttles meanwhile goes unnoticed."""
    text = os.environ.get("KETANET_STORE_RETRY_SECONDS", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise InputError(f"KETANET_STORE_RETRY_SECONDS is {text!r}; it takes a number of seconds, such as 60")
    return seconds


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of something on an object store.

    Raises
    ------
    InputError
        It is an address of another kind, such as ``https://``.
    """
    text = os.fspath(path)
    if _ADDRESS.fullmatch(text):
        return True
    if other := _OTHER_SCHEME.match(text):
        allowed = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise InputError(f"{other[0]}...: addresses of this kind cannot be used; a path can, or one of {allowed}")
    return False


def address_of(path: str | os.PathLike[str]) -> str:
    """A path made absolute, or the address of something on an object store made ``scheme://bucket/key``.

    Raises
    ------
    InputError
        The address has no bucket, an empty part, or credentials in it.
    """
    if not is_remote(path):
        return str(Path(path).absolute())
    match = _ADDRESS.fullmatch(os.fspath(path))
    assert match is not None
    scheme, rest = match[1], match[2].rstrip("/")
    if set(rest) & set("@?#"):
        raise InputError(
            f"{scheme}://...: the address holds a user, a password or a signature (@, ? or #); leave them out and set "
            f"{_NEEDED[scheme]} in the environment"
        )
    bucket, *parts = rest.split("/")
    if not _BUCKET.fullmatch(bucket) or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"{scheme}://{rest}: the address is not of the form {scheme}://bucket/path")
    return f"{scheme}://{rest}"


def parent_and_name(address: str) -> tuple[str, str]:
    """An address on an object store in two parts; the parent of a bucket is empty."""
    root, _, name = address.rpartition("/")
    return ("", address) if root.endswith("/") else (root, name)


@contextmanager
def failures(address: str) -> Iterator[None]:
    """Turn what obstore raises into a :class:`ketanet.KetanetError` of one line without secrets; an InputError where
    address, credentials or settings have to change.

    That an object is missing stays a FileNotFoundError; a missing bucket does not.
    """
    try:
        yield
    except Exception as error:
        text, kind = str(error), type(error)
        no_bucket = kind is FileNotFoundError and any(words in text for words in _NO_BUCKET)
        if not (kind.__module__.startswith("obstore") or kind is NotImplementedError or no_bucket):
            raise
        error.args = (kind.__name__,)  # what follows has it as its context, and tracebacks print that
    else:
        return
    words, is_input = _in_words(address, text, kind.__name__)
    error_type: type[KetanetError] = InputError if is_input else KetanetError
    if kind.__name__ in ("NotImplementedError", "NotSupportedError") or "<Code>NotImplemented</Code>" in text:
        error_type = NotSupportedError
    elif _broke_off(text) and not is_input:
        error_type = _BrokenOff
    raise error_type(f"{address}: {words}") from None


class NotSupportedError(KetanetError):
    """The store does not know this kind of request."""


class _BrokenOff(KetanetError):
    """An answer did not come, or not whole."""


def repeated(address: str, action: Callable[[], _T]) -> _T:
    """Do something with an object store, once more where an answer broke off: obstore repeats most requests itself,
    but not all."""
    end, pause = time.monotonic() + retry_seconds(), 0.1
    while True:
        try:
            with failures(address):
                return action()
        except _BrokenOff:
            if time.monotonic() > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _request(function: Callable[Concatenate[str, _P], _T]) -> Callable[Concatenate[str, _P], _T]:
    """Of a function whose first argument is an address: :func:`repeated`."""

    @wraps(function)
    def request(address: str, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return repeated(address, lambda: function(address, *args, **kwargs))

    return request


@_request
def read(address: str) -> memoryview:
    """All bytes of an object, in one request.

    Raises
    ------
    FileNotFoundError
        There is no such object.
    KetanetError
        The store cannot be reached or refuses.
    """
    client, key = _open(address)
    return memoryview(client.get(key).bytes())


@_request
def read_part(address: str, start: int, size: int) -> bytes:
    """Bytes of an object from `start` on, at least one and at most `size`; raises as :func:`read`."""
    client, key = _open(address)
    return bytes(client.get_range(key, start=start, length=size))


@_request
def write(address: str, data: bytes) -> None:
    """Make or replace an object; nobody ever sees a part of it."""
    client, key = _open(address)
    client.put(key, data)


@_request
def create(address: str, data: bytes) -> bool:
    """Make an object unless there is one that holds something else; whether it holds `data` now."""
    from obstore.exceptions import AlreadyExistsError

    client, key = _open(address)
    try:
        client.put(key, data, mode="create")
    except AlreadyExistsError:
        return read(address) == data  # made by a request whose answer broke off
    return True


@_request
def replace(address: str, data: bytes, tag: str | None) -> bool:
    """Replace an object if it is still the one of this tag (see :func:`look`); whether it holds `data` now."""
    from obstore.exceptions import PreconditionError

    client, key = _open(address)
    try:
        client.put(key, data, mode={"e_tag": tag})
    except (PreconditionError, FileNotFoundError):
        try:
            return read(address) == data
        except FileNotFoundError:
            return False
    return True


def join(folder: Path | str, name: str) -> Path | str:
    """Something in a folder: a path, or the address of an object below an address."""
    return folder / name if isinstance(folder, Path) else f"{folder}/{name}"


def place_of(path: str | os.PathLike[str]) -> Path | str:
    """An absolute path, or the address of something on an object store."""
    return address_of(path) if is_remote(path) else Path(path).absolute()


def exists(address: str) -> bool:
    """Whether there is an object of this address (not: below it); of few bytes, because they are read."""
    try:
        read(address)  # the answer to a HEAD request would not tell a missing bucket from a missing object
    except FileNotFoundError:
        return False
    return True


@_request
def look(address: str) -> tuple[datetime, str | None]:
    """When an object was last written, by the store's clock, and the tag of what it holds; raises as :func:`read`."""
    client, key = _open(address)
    found = client.head(key)
    return found["last_modified"], found["e_tag"]


@_request
def state_of(address: str) -> State:
    """Size and tag of an object; raises as :func:`read`."""
    client, key = _open(address)
    return _state(client.head(key))


@_request
def states(address: str) -> dict[str, State]:
    """Size and tag of every object below an address, by name relative to it, sorted."""
    client, key = _open(address)
    start = len(key) + 1 if key else 0
    return dict(sorted((entry["path"][start:], _state(entry)) for entry in _entries(client, key)))


def listed(address: str) -> dict[str, int]:
    """Bytes of every object below an address, by name relative to it, sorted."""
    return {name: state.size for name, state in states(address).items()}


def size_of(address: str) -> int:
    """Bytes of all files of a folder, or of all objects below an address."""
    if is_remote(address):
        return sum(listed(address).values())
    return sum(file.stat().st_size for file in Path(address).rglob("*") if file.is_file())


@_request
def is_empty(address: str) -> bool:
    """Whether there is no object below an address."""
    client, key = _open(address)
    return next(_entries(client, key), None) is None


def move_below(source: str, target: str, last: str) -> None:
    """Put every object below an address below another one of its bucket, replacing what is there; the one named `last`
    comes last, so that who looks for it meets all or nothing."""
    if exists(f"{target}/{last}"):
        remove(f"{target}/{last}")
    remove_below(target)
    names = sorted(listed(source), key=lambda name: name == last)
    for name in names:
        copy(f"{source}/{name}", f"{target}/{name}")
    remove_below(source)


@_request
def copy(source: str, target: str) -> None:
    """Copy an object within its bucket, on the store's side."""
    client, key = _open(source)
    client.copy(key, _split(target)[2])


@_request
def remove(address: str) -> None:
    """Remove an object, if there is one."""
    client, key = _open(address)
    with suppress(FileNotFoundError):  # S3 does not say that there is none, others do
        client.delete([key])


@_request
def remove_below(address: str) -> None:
    """Remove every object below an address."""
    client, key = _open(address)
    client.delete([entry["path"] for entry in _entries(client, key)])


@_request
def fetch(address: str, path: Path) -> None:
    """Bring an object into a local file, in blocks; raises as :func:`read`."""
    client, key = _open(address)
    size = client.head(key)["size"]
    with path.open("wb") as file:
        # a request each, because the time of one is limited
        for start in range(0, size, _BLOCK_BYTES):
            file.write(client.get_range(key, start=start, end=min(start + _BLOCK_BYTES, size)))


def zarr_store(address: str, *, read_only: bool = True) -> ObjectStore[Any] | str:
    """What zarr opens at an address: the path itself, or a store of its kind."""
    if not is_remote(address):
        return address
    from zarr.storage import ObjectStore

    scheme, bucket, key = _split(address)
    with failures(address):
        return ObjectStore(_client(scheme, bucket, key, _environment()), read_only=read_only)


def _broke_off(text: str) -> bool:
    return "HTTP error" in text and "BadScheme" not in text


def _in_words(address: str, text: str, kind: str) -> tuple[str, bool]:
    """What went wrong with a request; of the library's text only names that hold no secret are kept; whether
    what was asked for has to change."""
    scheme, bucket, _ = _split(address)
    needed = _NEEDED[scheme]
    found = re.search(r"<Code>(\w+)</Code>", text)
    code = found[1] if found else ""
    status = re.search(r"status code: (\d+)", text)
    answer = " ".join([*([status[1]] if status else []), *([code] if code else [])])
    if any(words in text for words in _NO_BUCKET):
        return f"there is no bucket {bucket!r}; check the address and the endpoint", True
    if "169.254.169.254" in text or re.search(r"Missing\w*(Key|Account|Token|Credential)", text):
        return f"no credentials; set {needed} in the environment (AWS_SKIP_SIGNATURE=true reads what is public)", True
    if code == "RequestTimeTooSkewed":
        return "the object store refuses the time of this machine; set its clock", True
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or code in _DENIED:
        return f"access denied ({answer or kind}); check {needed}, and what they are allowed to do in {bucket!r}", True
    if "BadScheme" in text:
        return "the endpoint is http://, without encryption; set AWS_ALLOW_HTTP=true to allow that", True
    if code in _ELSEWHERE or (status and status[1] in ("301", "307")):
        return f"the bucket is in another region ({answer}); set AWS_REGION to that", True
    if status and status[1].startswith("4") and status[1] not in ("408", "429"):
        return f"the object store refuses the request ({answer}); check the address and the settings", True
    if status:
        return f"the object store answers {answer}, tried for up to {retry_seconds():g} s; run again later", False
    if _broke_off(text):
        return (
            f"the object store cannot be reached, tried for up to {retry_seconds():g} s; check the network and "
            f"{'the endpoint (AWS_ENDPOINT_URL)' if scheme == 's3' else 'the settings'}, then run again"
        ), False
    return f"the object store refuses the request ({kind})", False


def _state(entry: Any) -> State:
    return State(int(entry["size"]), str(entry["e_tag"] or ""))


def _entries(client: Any, key: str) -> Iterator[Any]:
    """Objects below a key."""
    for batch in client.list(key or None):
        yield from batch


def _open(address: str) -> tuple[Any, str]:
    """Client of an address's bucket, and the key in it."""
    scheme, bucket, key = _split(address)
    return _client(scheme, bucket, "", _environment()), key


def _split(address: str) -> tuple[str, str, str]:
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    return scheme, bucket, key


def _environment() -> int:
    """Digest of the settings that a client is made from."""
    return hash(tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(_VARIABLES))))


def _require_sound_settings() -> None:
    """Refuse what the library would panic at; values may hold secrets, so that only names are told."""
    for name in (*_ENDPOINTS, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"):
        if not os.environ.get(name, "").isprintable():
            raise InputError(f"{name} holds a line break or another character that cannot be printed; set it anew")
    for name in _ENDPOINTS:
        endpoint = os.environ.get(name)
        try:
            parts = urlsplit(endpoint or "")
            sound = endpoint is None or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
        except ValueError:
            sound = False
        if not sound:
            raise InputError(f"{name} is no address such as https://host:9000; set it anew, or unset it")


@lru_cache(maxsize=32)
def _client(scheme: str, bucket: str, prefix: str, _settings: int) -> Any:
    """A client, made once a process: it keeps its connections."""
    try:
        from obstore.store import from_url
    except ImportError:
        raise InputError(
            f'{scheme}://{bucket}: object storage needs the package obstore: pip install "ketanet[s3]"'
        ) from None
    if scheme == "s3":
        _require_sound_settings()
    # no options of our own for the connection: they would take the place of those from the environment
    return from_url(
        f"{scheme}://{bucket}/{prefix}",
        retry_config={
            "max_retries": 100,  # time is what limits
            "retry_timeout": timedelta(seconds=retry_seconds()),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
        },
    )
