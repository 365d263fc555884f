"""An S3 server in this process, on the loopback interface, that can be told to fail."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from fsspec import get_filesystem_class
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

BUCKET = "images"
INTERNAL_ERROR = "500 Internal Server Error"
FORBIDDEN = "403 Forbidden"
_CODES = {INTERNAL_ERROR: "InternalError", FORBIDDEN: "AccessDenied"}

Fault = Callable[[str, str], str | None]
"""Decides by a request's method and path which status it gets in place of its answer; it may also take its time."""


class S3Server:
    """The server's application.

    Attributes:
        uri: URI of an empty bucket.
        fault: See ``Fault``; None answers everything.
        requests: Methods and paths of all requests.
    """

    def __init__(self) -> None:
        """Answer everything."""
        self.uri = f"s3://{BUCKET}"
        self.fault: Fault | None = None
        self.requests: list[tuple[str, str]] = []
        self._application = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request, as WSGI has it."""
        request = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append(request)
        if self.fault is None or (status := self.fault(*request)) is None:
            answer: Iterable[bytes] = self._application(environ, start_response)
            return answer
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{_CODES[status]}</Code><Message>told to fail</Message></Error>".encode()]

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Answer nothing until the end of the block."""
        end, before = threading.Event(), self.fault

        def hang(method: str, path: str) -> str:
            end.wait()
            return INTERNAL_ERROR

        self.fault = hang
        try:
            yield
        finally:
            self.fault = before
            end.set()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server, which the environment names, with an empty bucket."""
    application = S3Server()
    http = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    names = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{http.server_port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        # What other servers of this process hold is the same to moto.
        urlopen(Request(f"{names['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")).close()
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        get_filesystem_class("s3").clear_instance_cache()  # those of another test's server
        yield application
        get_filesystem_class("s3").clear_instance_cache()
    http.shutdown()
