"""How servers are asked over HTTP, by the commands and by instances of each other."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

PIECE_BYTES = 1 << 16
"""At most, of what is read at a time; less if a server sends less at a time."""


@contextmanager
def answered(
    method: str, url: str, *, timeout: float, body: Any = None, api_key: str | None = None
) -> Iterator[Response]:
    """The answer of a server, whatever its status, to a request with `body` as JSON. Its content comes while it is
    read; who leaves the block before its end hangs up.

    timeout: seconds to connect, and between two pieces of the answer. Raises ValueError for what is no address, which
    may be an OSError too, and an OSError, the system's own where it has one, if no answer comes or one breaks off.
    """
    # Takes a fifth of a second, which help and refusals do not need.
    import requests

    def authorise(request: PreparedRequest) -> PreparedRequest:
        if api_key:
            request.headers["Authorization"] = f"Bearer {api_key}"
        return request

    with requests.Session() as session:
        # Proxies of the environment are for other machines.
        session.trust_env = not _is_loopback(url)
        trusted = ssl.get_default_verify_paths()
        session.verify = trusted.cafile or trusted.capath or True
        # Or else a stream is compressed, and its pieces wait for each other.
        headers = {"Accept-Encoding": "identity"}
        try:
            with session.request(
                method, url, json=body, headers=headers, auth=authorise, timeout=timeout, stream=True
            ) as answer:
                yield answer
        except requests.RequestException as error:
            cause = _first_cause(error)
            if isinstance(cause, OSError):
                raise cause from None
            raise


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _first_cause(error: BaseException) -> BaseException:
    """What the system said, without the words of each layer around it."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error
