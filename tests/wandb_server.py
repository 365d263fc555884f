"""A server on this machine for wandb's client: it keeps what is logged to each run, and drops uploaded files."""

import gzip
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ServedRun:
    """A run as the server has it."""

    name: str
    project: str = ""
    entity: str = ""
    group: str = ""
    display_name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    """Each file's lines by their numbers."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """Logged measurements, in the order of the lines."""
        return [json.loads(line) for _, line in sorted(self.lines["wandb-history.jsonl"].items())]

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary."""
        lines = self.lines["wandb-summary.json"]
        return dict(json.loads(lines[max(lines)]))

    def bucket(self) -> dict[str, Any]:
        """Return what the API says of a run."""
        history = self.lines["wandb-history.jsonl"]
        entity = {"id": "E", "name": self.entity}
        return {
            "id": self.name,
            "name": self.name,
            "displayName": self.display_name,
            "config": json.dumps({key: {"value": value} for key, value in self.config.items()}),
            "summaryMetrics": json.dumps(self.summary) if history else "{}",
            "historyLineCount": len(history),
            "historyTail": json.dumps([history[len(history) - 1]] if history else []),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "tags": [],
            "wandbConfig": "{}",
            "project": {"id": "P", "name": self.project, "entity": entity},
        }


class _Handler(BaseHTTPRequestHandler):
    """Answers what the client asks to start, continue, follow and end a run."""

    protocol_version = "HTTP/1.1"
    runs: dict[str, ServedRun]

    def do_POST(self) -> None:
        """Answer a GraphQL operation, or take lines of a run's files."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        if self.path == "/graphql":
            request = json.loads(content)
            operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
                "UpsertBucket": self._upsert,
                "CreateRunFiles": self._uploads,
                "RunResumeStatus": self._resumable,
                "Viewer": lambda _: {"viewer": {"id": "V", "entity": "viewer", "username": "viewer", "flags": "{}"}},
            }
            operation = operations.get(request["operationName"])
            self._answer({"data": operation(request["variables"]) if operation else {}})
        elif self.path.endswith("/file_stream"):
            run = self.runs[self.path.split("/")[-2]]
            for name, chunk in json.loads(content).get("files", {}).items():
                run.lines[name].update(enumerate(chunk["content"], chunk["offset"]))
            self._answer({})
        else:  # measurements of the client itself
            self._answer({})

    def do_PUT(self) -> None:
        """Take an uploaded file."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        inserted = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], ServedRun(variables["name"]))
        run.project, run.entity = variables["project"] or run.project, variables["entity"] or run.entity
        run.group = variables["groupName"] or run.group
        run.display_name = variables["displayName"] or run.display_name
        run.config |= {key: item["value"] for key, item in json.loads(variables["config"] or "{}").items()}
        return {"upsertBucket": {"bucket": run.bucket(), "inserted": inserted}}

    def _uploads(self, variables: dict[str, Any]) -> dict[str, Any]:
        address = f"http://{self.headers['Host']}/upload"
        files = [{"name": name, "uploadUrl": f"{address}/{number}"} for number, name in enumerate(variables["files"])]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def _resumable(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        return {"model": run.bucket()["project"] | {"bucket": run.bucket()} if run else None}

    def _answer(self, data: dict[str, Any]) -> None:
        content = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: object) -> None:
        """Print nothing: the client resets the connections that it leaves."""


@contextmanager
def wandb_server() -> Iterator[tuple[str, dict[str, ServedRun]]]:
    """Serve on a free port of the loopback interface.

    Yields:
        The address, and the runs by their IDs.
    """
    runs: dict[str, ServedRun] = {}
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"runs": runs})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", runs
        finally:
            server.shutdown()
            thread.join()
