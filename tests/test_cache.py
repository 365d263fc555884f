"""Data sets at a URI: written to a local S3 server, and copied from it once per machine despite failures."""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from s3 import BUCKET, s3_server
from small import make_objects, small_config
from waiting import TIMEOUT_S

from adios_ray import local_cache
from adios_ray.data import cache as mirroring
from adios_ray.data import prepare as preparation
from adios_ray.data.manifest import MANIFEST_NAME, read_manifest
from adios_ray.data.rendered import scenes
from adios_ray.data.shards import open_shards, verify
from adios_ray.errors import DatasetError, InputError
from adios_ray.store import Store

pytestmark = pytest.mark.slow

URI = f"s3://{BUCKET}/some/objects"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start an S3 server; the value is its address."""
    with s3_server():
        yield os.environ["AWS_ENDPOINT_URL"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache, without the locks of other tests."""
    monkeypatch.setenv(local_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(local_cache, "_held", {})
    return tmp_path / "cache"


def upload(directory: Path, uri: str) -> None:
    """Copy all files of a directory to a URI."""
    store = Store(uri)
    for path in directory.iterdir():
        with store.writing(path.name) as target:
            shutil.copy(path, target)


@pytest.fixture
def remote(server: str, cache: Path, objects_dir: Path) -> Iterator[Path]:
    """Upload the rendered objects to URI; the value is the directory that they were copied from."""
    upload(objects_dir, URI)
    yield objects_dir
    Store(f"s3://{BUCKET}").remove("some")


@pytest.fixture
def fetched(caplog: pytest.LogCaptureFixture) -> Iterator[Counter[str]]:
    """Count the GET requests for each shard, from the server's log."""
    caplog.set_level(logging.INFO, "werkzeug")
    counts: Counter[str] = Counter()

    class Count(logging.Handler):
        """Counts the requests in the server's log."""

        def emit(self, record: logging.LogRecord) -> None:
            """Count one."""
            if found := re.search(r"GET /images/some/objects/(\S+\.arrow)", record.getMessage()):
                counts[found[1]] += 1

    handler = Count()
    logging.getLogger("werkzeug").addHandler(handler)
    yield counts
    logging.getLogger("werkzeug").removeHandler(handler)


def copies(cache: Path) -> list[Path]:
    """List the copies in the cache."""
    return sorted(path for path in cache.iterdir() if path.is_dir())


def test_a_remote_data_set_is_the_local_one(remote: Path, cache: Path) -> None:
    ours, theirs = open_shards(URI), open_shards(remote)
    assert ours.manifest == theirs.manifest == read_manifest(URI) == verify(URI)
    assert ours.directory.parent == cache
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(ours.split(split).images[0], theirs.split(split).images[0])


def test_files_are_fetched_once(remote: Path, cache: Path, fetched: Counter[str]) -> None:
    for _ in range(3):
        open_shards(URI)
    assert fetched == {entry.file: 1 for entry in read_manifest(remote).entries}


@pytest.mark.slow
def test_many_processes_share_one_copy(remote: Path, cache: Path, fetched: Counter[str]) -> None:
    code = f"from adios_ray.data.shards import open_shards; print(open_shards({URI!r}).split('train').images[0].sum())"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    assert outputs == [f"{open_shards(remote).split('train').images[0].sum()}\n"] * 4
    assert fetched == {entry.file: 1 for entry in read_manifest(remote).entries}
    assert len(copies(cache)) == 1 and not list(cache.rglob("*.tmp"))


def test_an_interrupted_copy_is_resumed(remote: Path, fetched: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "PARALLEL_COPIES", 1)
    fetch = Store.fetch

    def failing(self: Store, name: str, target: Path) -> None:
        """Break the connection in the middle of the second file."""
        if len(fetched) == 1:
            target.write_bytes(b"half of it")
            raise ConnectionError("reset by peer")
        fetch(self, name, target)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "fetch", failing)
        with pytest.raises(DatasetError, match=r"00000.arrow could not be fetched \(ConnectionError: reset by peer\)"):
            open_shards(URI)
    open_shards(URI)
    assert fetched == {entry.file: 1 for entry in read_manifest(remote).entries}


def test_a_copy_that_has_lost_files_is_completed(remote: Path, fetched: Counter[str]) -> None:
    """As where a machine removes old files one by one: the manifest may be what is left."""
    copy, expected = open_shards(URI).directory, read_manifest(remote)
    for lose in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])):
        lose(copy / "val-00000.arrow")
        assert verify(URI) == expected
    assert fetched == {entry.file: 1 for entry in expected.entries} | {"val-00000.arrow": 3}
    (copy / "val-00000.arrow").write_bytes(bytes((copy / "val-00000.arrow").stat().st_size))
    with pytest.raises(DatasetError, match=rf"val-00000.arrow does not have .* Remove {copy}, the copy"):
        verify(URI)


def test_a_damaged_shard_is_refused_by_name(remote: Path, cache: Path) -> None:
    content = bytearray((remote / "val-00000.arrow").read_bytes())
    content[5000] ^= 1
    with Store(URI).writing("val-00000.arrow") as path:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match="objects/val-00000.arrow does not have the checksum of its manifest"):
        open_shards(URI)
    assert not list(cache.rglob(MANIFEST_NAME)) and not list(cache.rglob("val-*"))


def test_a_data_set_is_verified_where_it_is(remote: Path, cache: Path, fetched: Counter[str]) -> None:
    open_shards(URI)
    Store(URI).remove("val-00000.arrow")
    assert verify(URI) == read_manifest(URI)  # of this machine's copy
    with pytest.raises(DatasetError, match="objects is damaged: val-00000.arrow is missing"):
        verify(URI, there=True)
    assert set(fetched.values()) == {2}


def test_a_data_set_prepared_again_is_another_copy(remote: Path, cache: Path, tmp_path: Path) -> None:
    first = open_shards(URI)
    upload(make_objects(tmp_path / "again", unlabeled=3), URI)
    second = open_shards(URI)
    assert first.directory != second.directory and "unlabeled" in second.manifest.splits
    assert len(copies(cache)) == 2 and first.split("train").images[0].any()


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_a_data_set_prepared_at_a_uri_has_the_bytes_of_a_local_one(server: str, cache: Path, tmp_path: Path) -> None:
    uri, source = f"s3://{BUCKET}/prepared", scenes.source(40, 0)
    for output in (tmp_path / "local", uri):
        assert not preparation.prepare(source, output, 32, {"dataset": "scenes"}).complete_before
    local, remote = Store(tmp_path / "local"), Store(uri)
    assert local.names() == remote.names() == {"manifest.json", *(f"{s}-00000.arrow" for s in ("train", "val", "test"))}
    assert all(local.read(name) == remote.read(name) for name in local.names())
    assert preparation.prepare(source, uri, 32, {"dataset": "scenes"}).complete_before
    with pytest.raises(DatasetError, match=f"{uri} holds another data set"):
        preparation.prepare(source, uri, 64, {"dataset": "scenes"})
    with pytest.raises(DatasetError, match=f"s3://{BUCKET} is not empty and not an unfinished data set"):
        preparation.prepare(source, f"s3://{BUCKET}", 64, {"dataset": "scenes"})
    remote.remove("manifest.json")
    with remote.writing(".parts/begun") as path:
        path.touch()
    assert preparation.prepare(source, uri, 32, {"dataset": "scenes"}).decoded == 40
    assert all(local.read(name) == remote.read(name) for name in local.names())


def size_of(directory: Path) -> int:
    """Sum the sizes of a directory's files in bytes."""
    return sum(path.stat().st_size for path in directory.iterdir())


def test_the_rest_of_an_interrupted_removal_is_removed(
    remote: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use = open_shards(URI).directory
    (cache / f".{in_use.name}").mkdir()
    (cache / f".{in_use.name}" / "train-00000.arrow").write_bytes(bytes(1000))
    (cache / "transfer").mkdir()  # results of hours, which are no copies
    (cache / "transfer" / "rate.json").write_bytes(bytes(100))
    monkeypatch.setenv(mirroring.BYTES_VARIABLE, str(size_of(in_use) + 600))
    mirroring._make_room(cache, 400, Store(URI))
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == sorted([in_use.name, "transfer"])
    assert (cache / "transfer" / "rate.json").is_file()


def test_a_copy_is_removed_beside_the_rest_of_an_earlier_one(tmp_path: Path) -> None:
    for name in ("copy", ".copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"")
    local_cache.remove_unless_held(tmp_path / "copy")
    assert {path.name for path in tmp_path.iterdir()} == {"copy.lock"}


def test_unused_copies_are_evicted(remote: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, unlabeled in (("second", 1), ("third", 2)):
        upload(make_objects(tmp_path / name, unlabeled=unlabeled), f"s3://{BUCKET}/some/{name}")
    first = open_shards(URI).directory
    local_cache.release(first)
    second = open_shards(f"s3://{BUCKET}/some/second").directory
    monkeypatch.setenv(mirroring.BYTES_VARIABLE, str(int(2.5 * size_of(first))))
    (second / "draft").symlink_to("nowhere")  # like a file that goes between its listing and its size
    third = open_shards(f"s3://{BUCKET}/some/third").directory
    assert copies(cache) == sorted([second, third])  # the first was not used
    with pytest.raises(
        DatasetError, match=rf"{URI} needs [\d,]+ bytes in {cache}, which has room for [\d,]+: free space"
    ):
        open_shards(URI)
    assert second.exists() and third.exists()
    run = cache / ("0" * 32) / "run"  # its driver was killed before it copied these to the URI
    (run / "wandb").mkdir(parents=True)
    os.utime(run.parent, (0, 0))
    local_cache.release(second)
    assert open_shards(URI).directory == first and not second.exists() and (run / "wandb").exists()
    monkeypatch.setenv(mirroring.BYTES_VARIABLE, "2 GB")
    with pytest.raises(DatasetError, match="ADIOS_RAY_CACHE_BYTES is '2 GB'; it must be a whole number of bytes"):
        open_shards(f"s3://{BUCKET}/some/second")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (f"s3://{BUCKET}/nothing", f"no data set in s3://{BUCKET}/nothing \\(manifest.json is missing\\)"),
        ("s3://no-such-bucket/x", "no-such-bucket/x"),
        ("nonsense://x/y", "nonsense://x/y cannot be reached: Protocol not known: nonsense"),
    ],
)
def test_places_without_a_data_set(server: str, cache: Path, uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_shards(uri)


def test_a_store_that_is_local_and_one_that_is_not(server: str, tmp_path: Path) -> None:
    local, remote = Store(f"file://{tmp_path}/a"), Store(f"s3://{BUCKET}/a/")
    assert local.local == tmp_path / "a" and remote.local is None
    assert str(local) == f"{tmp_path}/a" and str(remote) == f"s3://{BUCKET}/a"
    for store in (local, remote):
        assert store.names() == set() and store.size("x") is None
        with pytest.raises(FileNotFoundError):
            store.read("x")
        with store.writing("folder/x") as path:
            path.write_bytes(b"content")
        with store.writing("y") as path:
            path.write_bytes(b"")
        with pytest.raises(RuntimeError), store.writing("z") as path:
            path.write_bytes(b"half")
            raise RuntimeError
        assert store.names() == {"folder", "y"} and store.read("folder/x") == b"content"
        assert store.size("folder/x") == 7 and store.size("y") == 0 and store.size("folder") is None
        with pytest.raises(NotADirectoryError):
            Store(f"{store}/y").names()
        store.remove("folder")
        store.remove("nothing")
        assert store.names() == {"y"}
        store.remove("y")
        assert store.names() == set()


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(local_cache.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/some")
    assert local_cache.cache_directory() == Path("/some/adios_ray")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert local_cache.cache_directory() == Path.home() / ".cache" / "adios_ray"


def test_copies_are_named_by_their_manifest(remote: Path, cache: Path) -> None:
    name = hashlib.sha256((remote / MANIFEST_NAME).read_bytes()).hexdigest()[:32]
    assert open_shards(URI).directory == cache / name
    assert small_config(Path("x")).data_dir == "x"
