"""Holding the place of a data set while it is prepared: a second preparation waits for the first.

On a file system whose locks work, the operating system's lock ends with the process that holds it. Elsewhere (object
stores, some network file systems) the holder writes a new beat every few seconds; another preparation takes over once
it has seen no new one for a minute, whatever the two clocks say.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from adios_ray.store import Store

LOCK_FILE = ".preparing.lock"
HOLDER_FILE = ".preparing.json"
BEAT_S = 5.0
STALE_S = 60.0
SETTLING_S = 1.0
"""Seconds after which, of two that claim a place at once, the later one stands."""

Say = Callable[[str], None]


@contextmanager
def claimed(store: Store, say: Say) -> Iterator[None]:
    """Hold the place of a data set; wait while another preparation does.

    Args:
        store: The place; a directory is made.
        say: Receives a line where there is something to wait for.

    Raises:
        OSError: If the place cannot be written to.
    """
    if store.local is not None:
        store.local.mkdir(parents=True, exist_ok=True)
        lock = FileLock(store.local / LOCK_FILE)
        try:
            _acquire(lock, store.local, say)
        except PermissionError:
            raise
        except (NotImplementedError, OSError):  # this file system has no locks
            pass
        else:
            try:
                _write_holder(store, uuid.uuid4().hex)
                yield
                # Whoever waits for this file's lock gets it and finds a data set, even without the file's name.
                (store.local / LOCK_FILE).unlink(missing_ok=True)
            finally:
                _forget(store)
                lock.release()
            return
    with _beating(store, say):
        yield


def _acquire(lock: FileLock, directory: Path, say: Say) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"{directory} is being prepared by {_described(_holder(Store(directory)) or '')}; waiting for it")
        lock.acquire()


def _described(holder: str) -> str:
    try:
        values = json.loads(holder)
        return f"process {values['pid']} on {values['host']} since {values['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _write_holder(store: Store, token: str, beat: int = 0) -> None:
    values = {"host": socket.gethostname(), "pid": os.getpid(), "token": token, "beat": beat}
    with store.writing(HOLDER_FILE) as path:
        path.write_text(json.dumps({**values, "since": _STARTED}))


_STARTED = time.strftime("%Y-%m-%d %H:%M:%S")


def _holder(store: Store) -> str | None:
    try:
        return store.read(HOLDER_FILE).decode()
    except FileNotFoundError:
        return None


def _forget(store: Store) -> None:
    store.remove(HOLDER_FILE)


@contextmanager
def _beating(store: Store, say: Say) -> Iterator[None]:
    """Hold a place without locks, by beats."""
    token = uuid.uuid4().hex
    _wait_for_silence(store, say)
    while True:
        _write_holder(store, token)
        time.sleep(SETTLING_S)  # another one may have claimed it at the same moment: the last to write has it
        if token in (_holder(store) or ""):
            break
        _wait_for_silence(store, say)
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(store, token, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _forget(store)


def _wait_for_silence(store: Store, say: Say) -> None:
    """Return once the place is free: it has no holder, or its holder has sent no beat for a minute."""
    seen, since, said = None, time.monotonic(), False
    while (holder := _holder(store)) is not None:
        if holder != seen:
            seen, since = holder, time.monotonic()
        elif time.monotonic() - since > STALE_S:
            say(f"{store}: {_described(holder)} has not been heard of for {STALE_S:.0f} s; taking over")
            return
        if not said:
            say(f"{store} is being prepared by {_described(holder)}; waiting for it")
            said = True
        time.sleep(BEAT_S / 5)


def _beat(store: Store, token: str, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT_S):
        beat += 1
        try:
            _write_holder(store, token, beat)
        except Exception:  # noqa: S110,BLE001 - a beat that is lost is made up for by the next
            continue
