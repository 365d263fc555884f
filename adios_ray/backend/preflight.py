"""Checks of a cluster's nodes before a trial starts there: storage, data set, this package's source and torch.

A node that lacks one of them would fail every trial that is placed on it.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import adios_ray
from adios_ray.backend.node_checks import NOT_THERE, problem_text
from adios_ray.backend.tasks import cancelled_on_error
from adios_ray.console import counted, say
from adios_ray.data.manifest import read_manifest
from adios_ray.errors import ConfigError, DatasetError
from adios_ray.local_cache import cache_folder
from adios_ray.ray_private import cluster_started_here
from adios_ray.retry import retry
from adios_ray.store import Location, Store, local_path, split_location

PROBES = ".nodes-"
"""Begins the names of folders in a run's directory into which nodes write while they are checked."""
IMPORT_S = 30.0
"""Seconds that torch has to be imported on a node, perhaps from a slow disk; one that takes longer is no problem."""
ANSWER_S = 60.0 + IMPORT_S
"""Seconds that all nodes have to answer; before the import, a node's first task starts a process there."""
_IMPORT = """
try:
    import torch
    if {gpus}:
        torch.cuda.init()
except Exception as error:
    raise SystemExit(f"{{type(error).__name__}}: {{error}}".splitlines()[0])
"""


class Expected(NamedTuple):
    """Storage, data and packages that every node must have, as the driver sees them.

    Attributes:
        folder: A folder in the run's directory, or at its URI, that the driver has just made.
        data_dir: The data set, a directory or URI.
        data: Checksum of its manifest.
        source: Checksum of this package's source.
        torch: Version of torch.
        gpus: Whether torch is to use GPUs, where a node has any.
    """

    folder: Location
    data_dir: str
    data: str
    source: str
    torch: str | None
    gpus: bool


def check_nodes(
    run: Location,
    data_dir: str,
    gpus: bool,
    enough: Callable[[Collection[str]], bool] = lambda passed: False,
    say: Callable[[str], None] = say,
) -> dict[str, str]:
    """Check that all nodes of the cluster share the storage and the data, and run the same code.

    In a cluster that was there before, processes on this node have the environment in which it was started, not ours.

    Args:
        run: The run's directory or URI.
        data_dir: Directory or URI of the data set.
        gpus: Whether workers use GPUs.
        enough: Tells whether the nodes with these IDs suffice. If so, the others are reported and left out.
        say: Called with a line about the check, and about each node that is left out.

    Returns:
        For the ID of each node, this one's first, why it cannot train; nothing if it can.

    Raises:
        ConfigError: Naming all nodes that cannot train, and why.
    """
    own = ray.get_runtime_context().get_node_id()
    names = node_names()
    if not (asked := _asked(names)):
        return {own: ""}
    say(f"Checking storage, data and packages on {counted(len(asked), 'node')}")
    found = _ask(asked, run, data_dir, gpus)
    problems = dict.fromkeys([own, *names], "") | {
        node: problem_text(names[node], each) for node, each in found.items()
    }
    if not enough({node for node, problem in problems.items() if not problem}):
        refuse([(names[node], each) for node, each in found.items()])
    for problem in filter(None, problems.values()):
        say(f"{problem}. {NOT_THERE}")
    return problems


def find_node_problem(run: Location, data_dir: str, gpus: bool, node: str) -> str | None:
    """Ask a node why it cannot train; nothing if it can, None if it has left.

    Where this node does not see the data either, that is the reason.

    Raises:
        OSError: If the run's storage is away.
    """
    name = node_names().get(node)
    if name is None:
        return None
    try:
        return problem_text(name, _ask([node], run, data_dir, gpus).get(node, []))
    except DatasetError as error:
        return problem_text(name, [str(error)])


def find_refused_nodes(run: Location, data_dir: str, gpus: bool) -> list[str]:
    """Ask all nodes, and list the IDs of those that cannot train: such as have joined since ``check_nodes``.

    Raises:
        StorageError: If the run's storage stays away.
    """
    asked = _asked(node_names())
    return [node for node, found in _ask(asked, run, data_dir, gpus).items() if found] if asked else []


def _asked(nodes: Iterable[str]) -> list[str]:
    """Select the nodes that may see something else than this process."""
    own = {ray.get_runtime_context().get_node_id()} if cluster_started_here() else set()
    return [node for node in nodes if node not in own]


def _ask(nodes: Sequence[str], run: Location, data_dir: str, gpus: bool) -> dict[str, list[str]]:
    with probed(run) as folder:
        return ask_nodes(nodes, expected_in(folder, data_dir, gpus), ANSWER_S)


def node_names() -> dict[str, str]:
    """Name the nodes that are alive for people, by ID."""
    alive = (node for node in ray.nodes() if node["Alive"])
    return {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in alive}


def expected_in(folder: Location, data_dir: str, gpus: bool) -> Expected:
    """Collect what this process sees."""
    return Expected(folder, data_dir, _manifest_checksum(data_dir), source_checksum(), torch_version(), gpus)


def refuse(problems: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Raise ConfigError that names each node with its problems, unless there are none; several may have one name."""
    if failed := [f"{node}: {', '.join(found)}" for node, found in problems if found]:
        raise ConfigError(
            f"{len(failed)} of {len(problems)} nodes cannot train: {'; '.join(failed)}. Every node needs the "
            "run's storage and the data at the same path, and the same packages; or take these nodes out of the cluster"
        )


def ask_nodes(nodes: Sequence[str], expected: Expected, timeout_s: float) -> dict[str, list[str]]:
    """Run ``find_problems`` on nodes, given by their IDs; return the problems of each that is still there."""
    task = ray.remote(num_cpus=0, max_retries=0)(find_problems)
    with_gpus = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")}
    answers = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            expected._replace(gpus=expected.gpus and node in with_gpus), node
        ): node
        for node in nodes
    }
    with cancelled_on_error(list(answers)):
        answered, late = ray.wait(list(answers), num_returns=len(answers), timeout=timeout_s)
        found = {answers[answer]: _found(answer, expected, answers[answer]) for answer in answered}
    for answer in late:
        ray.cancel(answer, force=True)
        found[answers[answer]] = [f"it did not answer within {timeout_s:g} s"]
    alive = node_names()
    return {node: found[node] for node in nodes if node in alive}


def _found(answer: "ray.ObjectRef[list[str]]", expected: Expected, node: str) -> list[str]:
    try:
        problems: list[str] = ray.get(answer)
    except RayError as error:  # also where the node has no package adios_ray, or another one without this module
        return [str(error).strip().splitlines()[-1].strip()]
    # Only if the node itself saw no problem: the first cause says it all.
    if not problems and retry(partial(Store(expected.folder).size, node), say) is None:
        return [f"what it writes to {split_location(expected.folder)[0]} does not arrive here"]
    return problems


def find_problems(expected: Expected, node: str) -> list[str]:
    """Compare this node with the driver's; leave a file of the node's name on the storage."""
    with ThreadPoolExecutor(1) as beside:  # its import takes seconds
        torch = beside.submit(_torch_problem, expected.gpus)
        problems = _differences(expected, node)
        return [*problems, torch.result()] if torch.result() else problems


def _differences(expected: Expected, node: str) -> list[str]:
    problems, run = [], split_location(expected.folder)[0]
    try:
        if not all(map(local_path, (expected.folder, expected.data_dir))):
            cache_folder()  # where the node keeps its copies
        store = Store(expected.folder)
        if store.exists():
            _write_empty(store, node)
        else:
            problems.append(f"it does not see the run directory {run}")
    except ConfigError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(f"it cannot write to {run} ({error.strerror or error})")
    try:
        if _manifest_checksum(expected.data_dir) != expected.data:
            problems.append(f"it has another data set in {expected.data_dir}")
        elif missing := _missing_shards(expected.data_dir):
            problems.append(f"it lacks {len(missing)} shards in {expected.data_dir}, such as {missing[0]}")
    except DatasetError as error:
        problems.append(str(error))
    if source_checksum() != expected.source:
        problems.append(f"it has another adios_ray, in {Path(adios_ray.__file__).parent}")
    if (version := torch_version()) != expected.torch:
        problems.append(f"it has torch {version}, not {expected.torch}")
    return problems


def source_checksum() -> str:
    """Compute a checksum of this package's Python files, with their names."""
    checksum, package = hashlib.sha256(), Path(adios_ray.__file__).parent
    for file in sorted(package.rglob("*.py")):
        checksum.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return checksum.hexdigest()


def _manifest_checksum(data_dir: str) -> str:
    return hashlib.sha256(read_manifest(data_dir).model_dump_json().encode()).hexdigest()


def _missing_shards(data_dir: str) -> list[str]:
    """List shards that are not there in their whole size."""
    sizes = Store(data_dir).sizes()
    return [entry.file for entry in read_manifest(data_dir).entries if sizes.get(entry.file) != entry.bytes]


def torch_version() -> str | None:
    """Look up the installed version of torch without importing it, which takes seconds."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_problem(gpus: bool) -> str:
    """Import torch as a worker will, but in a process of its own, which may crash; say why it fails."""
    # A task without a GPU is shown none; a worker will be shown its own.
    shown = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    # -P because workers do not import modules of the current directory either.
    code = [sys.executable, "-P", "-c", _IMPORT.format(gpus=gpus)]
    try:
        ended = subprocess.run(code, env=shown, capture_output=True, text=True, errors="replace", timeout=IMPORT_S)
    except subprocess.TimeoutExpired:
        return ""
    if not ended.returncode:
        return ""
    said = ended.stderr.strip().splitlines() or [f"its import ended with status {ended.returncode}"]
    return f"it cannot use torch ({said[-1]})"


def remove_probes(run: Location) -> None:
    """Remove the folders into which nodes have written for an earlier driver of a run, which was killed meanwhile."""
    store = Store(run)
    with contextlib.suppress(OSError):
        for name in store.names():
            if name.startswith(PROBES):
                store.remove(name)


@contextlib.contextmanager
def probed(run: Location) -> Iterator[Location]:
    """Make a folder of a new name, and delete it with what nodes have written there."""
    store, name = Store(run), f"{PROBES}{secrets.token_hex(8)}"
    retry(partial(_write_empty, store, f"{name}/driver"), say)  # object stores have no empty folders
    try:
        yield f"{run}/{name}"
    finally:
        with contextlib.suppress(OSError):
            store.remove(name)


def _write_empty(store: Store, name: str) -> None:
    with store.writing(name) as file:
        file.touch()
