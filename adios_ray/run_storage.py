"""Storage of a run: a directory that all nodes share, or a URI of which each node has a copy.

With a URI, a run directory exists on each node too, in the cache directory, shared by the node's processes. Everything
is written and read there, as in a shared directory. Whoever has written a file then copies it to the URI, and whoever
reads one that another node has written fetches it first::

    driver                       URI                          workers
    directory ── push() ───────▶ config.json, journal, ...
                                 checkpoints/, masks/, ... ◀── publish(path) ── directory
    directory ◀─ pull("masks") ─ checkpoints/TRIAL/EPOCH ──── fetch(pointer) ─▶ directory

Without a URI there is nothing to copy, and these methods do nothing.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path

from adios_ray.checkpoints import META_FILE, STATE_FILES, Pointer, damage
from adios_ray.console import say
from adios_ray.files import atomic_path, check_writable
from adios_ray.local_cache import UNSAVED, cache_directory, hold, release, remove_unless_held
from adios_ray.places import fetched
from adios_ray.retry import BRIEF_S, in_thread, promptly
from adios_ray.run_directory import INITIAL_WEIGHTS, MASKS, TRACKERS, RunDirectory, newest_epochs, newest_first
from adios_ray.store import Location, Store, copy_in_parallel

NOT_DRIVERS = frozenset({"checkpoints", MASKS, "diverged", "actors", "tune", "driver.json", INITIAL_WEIGHTS})
"""Folders of a run into which others than its driver write; its claim, which is written to the URI itself; and its
initial weights, which workers read there."""
AT_END = TRACKERS - {"log.jsonl"}
"""Folders that the driver copies only when it ends, because they change all the time and nothing resumes from them."""
APPENDED = frozenset({"events.jsonl", "log.jsonl", "logs"})
"""Files, and a folder of files, that lines are appended to between two copies to the URI too."""
UNPUBLISHED_S = 1200.0
"""Age at which another trial's checkpoint that is not at the URI has been pruned there, not just written."""


class RunStorage:
    """A run's files, by their paths in the run directory of this node.

    Attributes:
        place: Directory or URI of the run.
        directory: The run directory on this node.
        uri: The place if it is a URI; None if it is a directory, which all nodes share.
    """

    def __init__(self, place: Location) -> None:
        """Take a run's directory or URI, on any node; nothing is read or created."""
        store = Store(place)
        self.place = str(store)
        self._remote = None if store.local is not None else store
        self.uri = None if self._remote is None else self.place
        self.directory = store.local or self._copy / self.place.rpartition("/")[2]
        self._pushed: dict[Path, tuple[int, int]] = {}
        self._ahead: set[Path] = set()
        self._pushing: list[Future[None]] = []

    @cached_property
    def _copy(self) -> Path:
        """This node's copy of the URI; a run in a directory needs no cache."""
        return cache_directory() / hashlib.sha256(self.place.encode()).hexdigest()[:32]

    def open(self) -> None:
        """Make this node's run directory usable for this process, until ``close`` or its end.

        Raises:
            OSError: If storage fails.
        """
        if self._remote is not None:
            hold(self._copy)
            run = RunDirectory(self.directory)
            with self._fetching():
                if (token := self._token()) and self._is_of_another_run(token):
                    shutil.rmtree(run.path)
                run.path.mkdir(parents=True, exist_ok=True)
                run.make_folders()
                if not run.config.exists():  # retry_in_run() takes storage to be away without it
                    if token:
                        self._fetch(run.token)
                    self._fetch(run.config)

    def close(self) -> None:
        """Remove this node's copy of the URI, unless another process uses it or it has what the URI may lack."""
        if self._remote is not None:
            release(self._copy)
            with suppress(OSError):  # a copy that stays is removed where room is needed
                if not self._unsaved.exists():
                    remove_unless_held(self._copy)

    @contextmanager
    def driven(self, check_claim: Callable[[], None]) -> Iterator[None]:
        """Use this node's run directory as the driver, and copy all of the driver's files to the URI at the end.

        What an earlier driver left on this node is removed first, except trackers' files and lines of logs and events,
        which no other node has. What could not be copied is kept on this node, and moved aside by the next driver. A
        driver that is stopped or fails does not wait for storage that does not answer within 3 s.

        Args:
            check_claim: Raises an error once another driver has taken the run over; then nothing more is copied.
        """
        if self._remote is None:
            yield
            return
        hold(self._copy)
        if self._is_of_another_run(self._token()):
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._clear()
        answer_s = None
        try:
            yield
        except BaseException:
            answer_s = BRIEF_S
            raise
        finally:
            try:
                promptly(check_claim, answer_s)
                self.push(at_end=True)
            except OSError as error:
                with suppress(OSError):
                    self._unsaved.touch()
                say(f"{self.place} lacks the latest files, which {self.directory} holds: {error}")
            else:
                self.close()

    @property
    def _unsaved(self) -> Path:
        return self._copy / UNSAVED

    def _clear(self) -> None:
        """Remove the driver's files on this node; those that the URI may lack are moved aside.

        Files to which the last driver has appended since it copied them are kept, and copied with the next ones.
        """
        files = list(self._driver_files())
        if RunDirectory(self.directory).token.exists():  # else they may be of a run that was at the URI before
            self._ahead = set(filter(self._is_ahead, files))
        if files and self._unsaved.exists():
            aside = self._copy.with_name(f"{self.directory.name}-unsaved-{time.strftime('%Y%m%d-%H%M%S')}")
            for path in files:
                kept = aside / self._name(path)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, kept)
            say(f"{aside} has what {self.place} may lack of the last driver on this node")
        for path in files:
            if path not in self._ahead:
                path.unlink()
        self._unsaved.unlink(missing_ok=True)

    def _is_ahead(self, path: Path) -> bool:
        """Tell whether a file here begins with what the URI has of it, and lines are only ever appended to it."""
        name = self._name(path)
        return name.partition("/")[0] in APPENDED and path.read_bytes().startswith(self._read(name))

    def _token(self) -> bytes:
        """Read the token of the run at the URI; empty if there is none, as before a run's first copy."""
        return self._read(RunDirectory(self.directory).token.name)

    def _read(self, name: str) -> bytes:
        """Read a file at the URI; empty if there is none."""
        assert self._remote is not None
        try:
            return self._remote.read(name)
        except FileNotFoundError:
            return b""

    def _is_of_another_run(self, token: bytes) -> bool:
        """Tell whether this node's copy is of a run that was at the URI before the one of this token."""
        own = RunDirectory(self.directory).token
        return own.exists() and own.read_bytes() != token

    def check_writable(self) -> None:
        """Check that files can be written.

        Raises:
            OSError: If they cannot.
        """
        check_writable(self.directory)
        if self._remote is not None:
            self._remote.probe()

    def here(self, pointer: Pointer) -> Pointer:
        """Return a pointer to the same checkpoint on this node; another node may keep its copy of the run elsewhere."""
        if self.uri is None:
            return pointer
        return pointer.moved(RunDirectory(self.directory).located)

    def publish(self, path: Path) -> None:
        """Copy to the URI what this process has written: a file, or a folder, whose ``meta.json`` is copied last.

        Raises:
            OSError: If storage fails; the call may be repeated.
        """
        if self._remote is not None:
            files = [path] if path.is_file() else sorted(path.iterdir(), key=lambda file: file.name == META_FILE)
            for file in files:
                self._remote.put(file, self._name(file))

    def fetch(self, pointer: Pointer) -> None:
        """Copy a checkpoint from the URI, unless an intact copy is on this node; once for all processes of the node.

        A checkpoint that is not complete at the URI is left missing.

        Raises:
            OSError: If storage fails.
        """
        if self._remote is not None and damage(pointer) is not None:
            with self._fetching():
                if damage(pointer) is not None:  # another process may have fetched it
                    self._fetch_folder(pointer.path)

    def fetch_initial_weights(self) -> Path | None:
        """Return the run's copy of its initial weights on this node, fetched if it is not there; None if it has none.

        Raises:
            OSError: If storage fails; the call may be repeated.
        """
        path = RunDirectory(self.directory).initial_weights
        if self._remote is not None and not path.exists() and self.has(path):
            with self._fetching():
                if not path.exists():  # another process may have fetched it
                    self._fetch(path)
        return path if path.exists() else None

    def push(self, at_end: bool = False) -> None:
        """Copy the driver's files that have changed since the last call to the URI, and delete those that are gone.

        The journal is copied last, after what a driver that resumes from it reads, and its snapshot just before.

        Args:
            at_end: Whether the driver ends, and copies everything.

        Raises:
            OSError: If storage fails, or an interrupted call has not ended within 3 s; the call may be repeated.
        """
        if self._remote is None:
            return
        # After an interruption the call before continues: its files, now old, must not replace those of this one.
        if wait(self._pushing, BRIEF_S).not_done:
            raise TimeoutError(f"no answer within {BRIEF_S:.0f} s")
        self._pushing = [in_thread(partial(self._push, at_end))]
        # Again and again, as Python does not notice an interruption at the moment in which a wait begins.
        while wait(self._pushing, BRIEF_S).not_done:
            pass
        self._pushing[0].result()

    def _push(self, at_end: bool) -> None:
        assert self._remote is not None
        run = RunDirectory(self.directory)
        if self._pushed:
            run.config.stat()  # raises if this copy has been removed: what is at the URI must not follow it
        found = _statuses(self._driver_files(at_end))
        last = (run.population, run.journal)
        changed = [path for path, status in found.items() if self._pushed.get(path) != status]
        copy_in_parallel(self.publish, [path for path in changed if path not in last])
        for path in last:
            if path in changed:
                self.publish(path)
        for path in self._pushed.keys() - found.keys():
            self._remote.remove(self._name(path))
        self._pushed = found

    def pull(self, *folders: str) -> None:
        """Copy the files of some folders from the URI that this node lacks.

        Raises:
            OSError: If storage fails.
        """
        if self._remote is not None:
            names = [f"{folder}/{name}" for folder in folders for name in Store(f"{self.place}/{folder}").find()]
            self._fetch_all(path for name in names if not (path := self.directory / name).exists())

    def fetch_run(self) -> None:
        """Copy the driver's files from the URI, except those that have more lines on this node.

        Raises:
            FileNotFoundError: If the run has no configuration there.
            OSError: If storage fails.
        """
        if self._remote is None:
            return
        hold(self._copy)
        tops = {name for name in self._remote.names() if name not in NOT_DRIVERS}
        folders = {name for name in tops if self._remote.size(name) is None}
        names = {*(tops - folders), RunDirectory(self.directory).config.name}
        self._fetch_all(path for name in names if (path := self.directory / name) not in self._ahead)
        self.pull(*(folders - AT_END))
        self._pushed = _statuses(path for path in self._driver_files() if path not in self._ahead)

    def has(self, path: Path) -> bool:
        """Tell whether a file is stored, on the URI if there is one.

        Raises:
            OSError: If remote storage fails.
        """
        return path.is_file() if self._remote is None else self._remote.size(self._name(path)) is not None

    def has_checkpoint(self, path: Path) -> bool:
        """Tell whether a checkpoint is stored, on the URI if there is one: then only if its copy there is complete.

        Raises:
            OSError: If remote storage fails.
        """
        stored = any(self.has(path / name) for name in STATE_FILES)
        return stored and (self.uri is None or self.has(path / META_FILE))

    def names(self, folder: Path) -> set[str]:
        """Return the names in a folder; none while storage fails or does not answer within 3 s."""
        with suppress(OSError):
            return self.read_names(folder)
        return set()

    def read_names(self, folder: Path) -> set[str]:
        """Return the names in a folder.

        Raises:
            OSError: If storage fails or does not answer within 3 s.
        """
        if self._remote is not None:
            return promptly(partial(self._remote.names, self._name(folder)), BRIEF_S)
        return set(os.listdir(folder))

    def epochs(self, folder: Path) -> list[Path]:
        """List what was written into a folder after each epoch, newest first; none as in ``names``."""
        return newest_first(folder, self.names(folder))

    def remove(self, path: Path) -> None:
        """Remove a checkpoint or a file, as far as storage allows it.

        A removal that storage does not answer within 20 s continues: what is removed must not be written again.
        """
        if self._remote is not None:
            with suppress(OSError):
                promptly(partial(self._remove_remote, self._name(path)))
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()

    def _remove_remote(self, name: str) -> None:
        assert self._remote is not None
        self._remote.remove(f"{name}/{META_FILE}")  # first: the rest is no checkpoint
        self._remote.remove(name)

    def trim(self, trial: str | None) -> None:
        """Remove this node's copies of checkpoints that have been pruned at the URI.

        Args:
            trial: The trial whose checkpoints this process writes, all of which are published; None if it writes none.
        """
        if self._remote is None:
            return
        for folder in RunDirectory(self.directory).checkpoints.glob("*"):
            age_s = 0.0 if folder.name == trial else UNPUBLISHED_S
            old = [path for path in newest_epochs(folder) if time.time() - _modified(path) > age_s]
            kept = set(self.epochs(folder)) if old else set()
            for path in old if kept else []:
                if path not in kept:
                    shutil.rmtree(path, ignore_errors=True)

    def _driver_files(self, at_end: bool = False) -> Iterator[Path]:
        left_out = NOT_DRIVERS if at_end else NOT_DRIVERS | AT_END
        for top in self.directory.iterdir() if self.directory.is_dir() else ():
            if top.name not in left_out and not top.name.startswith("."):
                yield from (path for path in ([top] if top.is_file() else top.rglob("*")) if _is_whole(path))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix()

    def _fetch_all(self, paths: Iterable[Path]) -> None:
        copy_in_parallel(self._fetch, paths)

    def _fetch(self, path: Path) -> None:
        assert self._remote is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as draft:
            self._remote.fetch(self._name(path), draft)

    def _fetch_folder(self, path: Path) -> None:
        assert self._remote is not None
        names = self._remote.names(self._name(path))
        if META_FILE not in names:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as draft:
            draft.mkdir()
            for name in names:
                self._remote.fetch(f"{self._name(path)}/{name}", draft / name)

    @contextmanager
    def _fetching(self) -> Iterator[None]:
        """Wait until no other process of this node fetches a checkpoint of the run."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self._copy / "fetching.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def fetched_run(place: Location) -> Path:
    """Return a local path with what people read of a run: its driver's files and masks; see ``places.fetched``."""
    return fetched(place, without=NOT_DRIVERS - {MASKS})


def _statuses(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Look up when files were last changed, and their sizes."""
    return {path: (status.st_mtime_ns, status.st_size) for path in paths if (status := path.stat())}


def _modified(path: Path) -> float:
    """Return when a file was changed last, in seconds since 1970; for one that another process has removed, now."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _is_whole(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")
