"""One process at a time: a claim on a data set while it is prepared, or on a run while its driver is alive.

The holder is named in a file of the place, and writes a new beat into it every few seconds, from a thread. Another
process on the same machine knows at once whether the holder is alive, by its process ID and start time, even while the
holder is suspended or its storage is slow. Elsewhere, it listens: a new beat means that the holder is alive, none for a
minute that it is dead, whatever the two clocks say. Operating systems' locks are not used: on network file systems they
may be lost or outlive their holder, and object stores have none.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from adios_ray.errors import ClaimError
from adios_ray.files import atomic_path
from adios_ray.retry import ANSWER_S, BRIEF_S, promptly
from adios_ray.store import Store

BEAT_S = 5.0
STALE_S = 60.0
SETTLING_S = 1.0
"""Seconds after which, of two that take over a place at once, the later one stands."""

Say = Callable[[str], None]
_held: set[str] = set()
"""Tokens of the claims that this process holds. A file with another token of this process is left over: it could not
be removed while storage was unavailable."""


class Activity(NamedTuple):
    """The purpose of a claim.

    Attributes:
        file: Name of the file that names the holder.
        verb: Participle for messages.
    """

    file: str
    verb: str


PREPARING = Activity(".preparing.json", "prepared")
TRAINING = Activity("driver.json", "trained")


class Holder(BaseModel):
    """The process that holds a place; files of earlier versions lack some of it."""

    token: str
    """Different for each claim."""
    host: str = ""
    pid: int = 0
    machine: str = ""
    """Identifies the boot and the process namespace in which ``pid`` means this process; empty if unknown."""
    began: str = ""
    """Start time of the process in the system's ticks: process IDs are used again."""
    job: str = ""
    """Job of the cluster or its queue; empty if there is none."""
    since: str = ""
    beat: int = 0
    suspended: bool = False
    """Whether an earlier holder may be suspended, not dead: at the end the file stays, to stop it when it wakes."""
    ended: bool = False
    """Whether it has ended and left the place to others."""

    def __str__(self) -> str:
        """Describe the process for people."""
        if not self.pid:
            return "another process"
        return f"process {self.pid} on {self.host}{self.job and f' (job {self.job})'} since {self.since}"

    def alive(self) -> bool | None:
        """Tell whether the process is alive and holds the place; None if that cannot be known on this machine."""
        if self.ended:
            return False
        if not self.machine or self.machine != _machine():
            return None
        began = _process_start(self.pid)
        if began is None:
            return None
        return began == self.began and (self.pid != os.getpid() or self.token in _held)


class Claim:
    """A place that this process holds, until another one takes it over."""

    def __init__(self, store: Store, activity: Activity, job: str) -> None:
        """Prepare a claim; ``claimed`` makes it."""
        self._store, self._activity = store, activity
        self._holder = Holder(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            began=_process_start(os.getpid()) or "",
            job=job,
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )
        self._ended = threading.Event()
        self._lost: ClaimError | None = None
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Make sure that no other process has taken the place over.

        Raises:
            ClaimError: If one has; names it.
            OSError: If storage fails.
        """
        # Without a file, storage is away, or the file was deleted: in both cases no other process is known.
        if (content := self._read()) is not None and self._holder.token not in content:
            raise ClaimError(
                f"{self._store} has been taken over by {_parse(content)}; this process stops and writes no more"
            )

    def check_beats(self) -> None:
        """Raise the ClaimError that the last beat has found, if it has; this one asks no storage."""
        if self._lost is not None:
            raise self._lost

    def make(self, say: Say, wait: bool, take_over: bool) -> None:
        """Claim the place and start the beats; see ``claimed``."""
        if self._store.local is not None:
            self._store.local.mkdir(parents=True, exist_ok=True)
        _held.add(self._holder.token)
        while not self._try(self._wait_for_end(say, wait, take_over)):
            pass
        self._thread.start()

    def release(self, limit_s: float = ANSWER_S) -> None:
        """End the beats and leave the place to others; after a takeover, with a file that says so.

        Args:
            limit_s: Seconds that storage has to answer.
        """
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(limit_s)
        # While storage is away the claim is left: it is a dead process's then. A beat that hangs says that it is away.
        with suppress(OSError):
            if not self._thread.is_alive() and self._holder.token in (self._read(limit_s) or ""):
                if self._holder.suspended:
                    self._holder.ended = True
                    self._write()
                else:
                    self._store.remove(self._activity.file)
        _held.discard(self._holder.token)

    def _wait_for_end(self, say: Say, wait: bool, take_over: bool) -> bool:
        """Return once the place is free: without a holder (False), or with a dead one to take over from (True)."""
        heard, since, said = "", time.monotonic(), False
        while (content := self._read()) is not None:
            holder = _parse(content)
            alive = holder.alive()
            self._holder.suspended = holder.suspended or alive is not False
            if take_over or alive is False:
                if not take_over and self._read() != content:
                    continue  # it has left the place between the two looks
                if not holder.ended:
                    say(f"{self._store}: taking over from {holder}{'' if take_over else ', which has ended'}")
                return True
            if not wait and (alive or (heard and content != heard)):
                raise ClaimError(
                    f"{self._store} is being {self._activity.verb} by {holder}, which is alive: stop it first, or, if "
                    "you know better, run again with --take-over"
                )
            if content != heard:
                heard, since = content, time.monotonic()
            elif not alive and time.monotonic() - since > STALE_S:
                say(f"{self._store}: {holder} has not been heard of for {STALE_S:.0f} s; taking over")
                return True
            if not said:
                self._say_wait(say, wait, holder)
                said = True
            time.sleep(BEAT_S / 5)
        self._holder.suspended = False
        return False

    def _say_wait(self, say: Say, wait: bool, holder: Holder) -> None:
        if wait:
            say(
                f"{self._store} is being {self._activity.verb} by {holder}; waiting for it (if it has given up without "
                f"ending, remove {self._activity.file} there)"
            )
        else:
            say(
                f"{self._store} was being {self._activity.verb} by {holder}; listening for up to {STALE_S:.0f} s "
                "whether it is alive (if you know that it is dead, --take-over does not wait)"
            )

    def _try(self, over: bool) -> bool:
        """Write this process into the file; return whether the place is its own."""
        if not over and self._store.local is not None:
            try:
                with (self._store.local / self._activity.file).open("x") as file:  # fails if another one was faster
                    file.write(self._holder.model_dump_json())
            except FileExistsError:
                return False
            return True
        self._write()
        time.sleep(SETTLING_S)  # another one may have written it at the same moment: the last to write has it
        return self._holder.token in (self._read() or "")

    def _read(self, limit_s: float | None = None) -> str | None:
        read = partial(self._store.read, self._activity.file)
        try:
            content = read() if self._store.local is not None else promptly(read, limit_s)
            return content.decode(errors="replace")
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        local, file = self._store.local, self._activity.file
        # On a directory not through the store, which makes missing folders: while storage is unmounted, a beat would
        # make one in its place.
        with self._store.writing(file) if local is None else atomic_path(local / file) as draft:
            draft.write_text(self._holder.model_dump_json())

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.check()
                self._holder.beat += 1
                self._write()
            except ClaimError as error:
                self._lost = error
                return
            except Exception:  # a beat that is lost is made up for by the next
                continue


@contextmanager
def claimed(
    store: Store,
    say: Say,
    activity: Activity = PREPARING,
    *,
    wait: bool = True,
    take_over: bool = False,
    job: str = "",
) -> Iterator[Claim]:
    """Hold a place; of two processes that claim it, one does.

    It is left at the end, unless storage does not answer: within 20 s, or 3 s after an exception.

    Args:
        store: The place; a directory is made.
        say: Receives a line where there is something to wait for, or to take over.
        activity: What it is claimed for.
        wait: Whether to wait while another process holds it; else a living one is an error.
        take_over: Whether to take it over at once, even from a living process.
        job: Job of the cluster or its queue, for messages.

    Raises:
        ClaimError: If another process holds it, and ``wait`` is false.
        OSError: If the place cannot be written to.
    """
    claim = Claim(store, activity, job)
    try:
        claim.make(say, wait, take_over)
        yield claim
    except BaseException:
        claim.release(BRIEF_S)
        raise
    claim.release()


def holder_of(folder: Path, activity: Activity) -> Holder | None:
    """Read which process holds a directory; None if none does, or only a dead one.

    A process on another machine counts as alive while its last beat is recent, by this machine's clock.

    Args:
        folder: The directory.
        activity: What it would be claimed for.
    """
    file = folder / activity.file
    try:
        holder, silent_s = _parse(file.read_text(errors="replace")), time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return None
    alive = holder.alive()
    return holder if alive or (alive is None and silent_s < STALE_S) else None


def _parse(content: str) -> Holder:
    try:
        return Holder.model_validate_json(content)
    except ValidationError:  # it is being written, or is damaged
        return Holder(token="")


def _machine() -> str:
    """Identify this boot of this machine and its namespace of process IDs; empty where /proc is missing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """Return when a process started, in ticks since the boot; empty if it has ended or there never was one.

    None if /proc hides the process because it is another user's (mount option hidepid), or is missing.
    """
    try:
        # After the name, which may contain spaces: the state is the first field, the start time the twentieth.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)  # no signal; asks for the process only
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return None
    return "" if fields[0] in "ZX" else fields[19]
