"""The process of one tracker: ``python -m adios_ray.tracking.trackers NAME RUN``.

Reads a message a line from standard input, and answers each with a line of JSON: null, or the reason why the tracker
failed, which may come once more when it is closed. It ends when its input ends, be it that the run has finished or that
its driver was killed.
"""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import cast

from adios_ray.run_storage import RunStorage
from adios_ray.tracking.trackers.base import Message, Tracker, TrackerName
from adios_ray.tracking.trackers.isolation import CLOSE_S


def make_tracker(name: TrackerName, storage: RunStorage) -> Tracker:
    """Make a tracker by its name; modules of others are not imported."""
    if name == "tensorboard":
        from adios_ray.tracking.trackers.tensorboard import TensorBoardLog

        return TensorBoardLog(storage)
    if name == "jsonl":
        from adios_ray.tracking.trackers.jsonl import JsonLinesLog

        return JsonLinesLog(storage.directory)
    from adios_ray.tracking.trackers.wandb import WandbLog

    return WandbLog(storage, "online" if name == "wandb-online" else "offline")


def give(tracker: Tracker, line: str) -> None:
    """Call the tracker's method for a message."""
    Message.model_validate_json(line).give(tracker)


def failure(call: Callable[[], None]) -> str | None:
    """Make a call, and return in one line why it failed; None if it did not."""
    try:
        call()
    except Exception as error:  # whatever a service or its library raises, the run continues
        traceback.print_exc()
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def serve(make: Callable[[], Tracker]) -> None:
    """Make a tracker, and pass messages on to it until there are no more."""
    # What libraries and their processes print, in C too, must not look like an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tracker = make()

    def answer(reason: str | None) -> None:
        print(json.dumps(reason), file=answers, flush=True)

    for line in sys.stdin:
        answer(failure(partial(give, tracker, line)))
    # The run waits no longer than this, and a killed driver's tracker must not stay for ever.
    limit = threading.Timer(CLOSE_S, lambda: os._exit(1))
    limit.daemon = True
    limit.start()
    if reason := failure(tracker.close):
        answer(reason)


if __name__ == "__main__":
    # `ray job stop` sends SIGTERM to all processes of a job: this one ends with its input, when all is recorded.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(partial(make_tracker, cast(TrackerName, sys.argv[1]), RunStorage(sys.argv[2])))
    sys.stderr.flush()
    os._exit(0)  # libraries' exit handlers may wait for a server, and everything is closed
