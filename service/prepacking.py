"""Makes the prepacked copy of one graph: python -m service.prepacking, a process of its own.

ONNX Runtime saves every constant, also those that no operator packs, once for each graph: gigabytes that the
tasks of a model share in its bundle. Here only packed weights keep bytes of their own; all others are read
from the bundle's weights file, which is linked into the copy. Knows nothing of locks and of other copies.

NOTE: ONNX Runtime looks for a packed weight in the file of the weight itself, and packs that once more at
every load to see whether the saved one fits. So the bytes of a packed weight are in the copy twice.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service import copy_records, host, session, wire
from service import manifest as contract
from service.compacting import LENGTH, LOCATION, SAVED_DATA, Compaction
from service.copy_records import CopiedFile, Record
from service.errors import BundleError
from service.files import FileRecord, bake_again, check_hashes, flush, sha256_of
from service.manifest import MANIFEST_FILE
from service.wire import Entries

BROKEN_BUNDLE, NO_CACHE, UNFIT = 3, 4, 5  # exit statuses
STAGING = ".making"
SAVED_GRAPH = "saved.onnx"  # as ONNX Runtime leaves it
# What a graph's external bytes become while its copy is made, if it is of linear layers alone: saved as they
# were and packed, then both copied once more. Word tables are not packed, so that it is less.
DISK_FACTOR = 4


@dataclass(frozen=True)
class Wanted:
    """The graph of a bundle that is copied, and where to."""

    bundle: Path
    file: str  # of the graph, in the bundle
    target: Path  # the folder that holds what `bundle` becomes
    manifest_sha256: str

    @property
    def graph(self) -> Path:
        """Return where the copy's graph will be."""
        return self.target / self.file

    @property
    def data_name(self) -> str:
        """Return the name of the file of packed weights."""
        return self.graph.with_suffix(session.COPY_DATA_ENDING).name


def make(wanted: Wanted) -> None:
    """Make the copy of a graph in place of any that is there; nothing shows before all of it is on the disk.

    Raises BundleError for a bundle that is not what its manifest says, OSError and ValueError for all else.
    """
    staging = wanted.target / STAGING
    staging.mkdir()
    wanted.graph.parent.mkdir(parents=True, exist_ok=True)
    source = wanted.bundle / wanted.file
    known = _known(source.read_bytes())
    weights = _weights(wanted, known)
    num_bytes = sum(int(entries.get(LENGTH, 0)) for entries in known.values())
    needed, free = disk_bytes(num_bytes, weights, staging), shutil.disk_usage(staging).free
    if needed > free:
        message = f"{needed / 1e9:.1f} GB are needed for a while, {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, message, str(staging))
    record = _checked(wanted, weights)
    try:
        session.save_prepacked(source, staging / SAVED_GRAPH, SAVED_DATA, host.num_usable_cores())
    except BundleError as error:  # its hashes are right: the disk is full, or opening it will say the same
        raise OSError(str(error)) from error
    with (staging / SAVED_DATA).open("rb") as saved, (staging / wanted.data_name).open("wb") as written:
        compaction = Compaction(saved, written, wanted.data_name, weights, known)
        graph = wire.rewrite((staging / SAVED_GRAPH).read_bytes(), compaction.place)
        written.flush()
        os.fsync(written.fileno())
    (staging / SAVED_DATA).unlink()
    copy_records.write_flushed(staging / wanted.graph.name, graph)
    own = {name: copy_records.describe(staging / name) for name in (wanted.data_name, wanted.graph.name)}
    _publish(wanted, {**own, **record})


def _known(graph: bytes) -> dict[str, Entries]:
    """Return the external constants of a bundle's graph by name, without those whose name means several."""
    known: dict[str, Entries] = {}
    for tensor in wire.external_tensors(graph):
        known[tensor.name] = {} if tensor.name in known else tensor.entries
    return {name: entries for name, entries in known.items() if entries}


def _weights(wanted: Wanted, known: dict[str, Entries]) -> Path | None:
    """Return the one file beside a bundle's graph that holds its constants."""
    names = {entries.get(LOCATION, "") for entries in known.values()}
    if not names:
        return None
    name = names.pop()
    if names or name in ("", "..", wanted.data_name, wanted.graph.name) or "/" in name:
        raise ValueError(f"the constants of {wanted.file} are in {sorted({*names, name})}")
    return (wanted.bundle / wanted.file).parent / name


def _checked(wanted: Wanted, weights: Path | None) -> Record:
    """Check the hashes of what is copied; bring the weights into the copy and return their record."""
    if sha256_of(wanted.bundle / MANIFEST_FILE) != wanted.manifest_sha256:
        raise BundleError(f"{wanted.bundle} was replaced while the service ran: restart the service")
    records = contract.load(wanted.bundle).files
    check_hashes(wanted.bundle, {wanted.file: records[wanted.file]})
    if weights is None:
        return {}
    name = weights.relative_to(wanted.bundle).as_posix()
    if name not in records:
        path = wanted.bundle / MANIFEST_FILE
        raise BundleError(f"{path} lists no size and hash of {name}: {bake_again(wanted.bundle)}")
    present = wanted.graph.parent / weights.name
    copied = _recorded(present, records[name])
    if copied is None or not present.samefile(weights):  # else they were hashed for another graph
        check_hashes(wanted.bundle, {name: records[name]})
    if copied is None:
        link = wanted.target / STAGING / weights.name
        copied = _bring(weights, link, records[name].sha256)
    return {weights.name: copied}


def _recorded(weights: Path, expected: FileRecord) -> CopiedFile | None:
    """Return the record of weights that the copies of other graphs share; None where there are none."""
    for path in weights.parent.glob(f"*{copy_records.SUFFIX}"):
        copied = copy_records.load(path).get(weights.name)
        if copied and copied.sha256 == expected.sha256 and copied.agrees(weights):
            return copied
    return None


def disk_bytes(num_bytes: int, weights: Path | None, folder: Path) -> int:
    """Return what a copy takes of a folder's disk while it is made; weights of another disk are copied."""
    is_apart = weights is not None and weights.stat().st_dev != folder.stat().st_dev
    return (DISK_FACTOR + is_apart) * num_bytes


def _bring(weights: Path, link: Path, sha256: str) -> CopiedFile:
    """Give the bundle's weights file a second name: the same bytes on the disk and in the page cache.

    Where that cannot be, on another file system or under another owner, one copy serves all graphs.
    """
    try:
        os.link(weights.resolve(), link)
    except OSError:
        shutil.copyfile(weights, link)
        flush(link)
        copied = copy_records.describe(link)
        if copied.sha256 != sha256:
            raise ValueError(f"{weights} was copied and has another sha256 now") from None
        return copied
    return copy_records.describe(link, sha256)


def _publish(wanted: Wanted, record: Record) -> None:
    """Move the files to their places, the record last: without it there is no copy."""
    staging, target = wanted.target / STAGING, wanted.graph.parent
    record_file = copy_records.record_of(wanted.graph)
    copy_records.save(staging / record_file.name, record)
    record_file.unlink(missing_ok=True)
    for name in (*record, record_file.name):
        if (staging / name).exists():  # the weights may be there already
            (staging / name).replace(target / name)
    flush(target)
    shutil.rmtree(staging)


def main(arguments: Sequence[str]) -> int:
    """Make one copy; say on standard error why not. Returns the exit status."""
    bundle, file, target, manifest_sha256 = arguments
    try:
        make(Wanted(Path(bundle), file, Path(target), manifest_sha256))
    except BundleError as error:
        sys.stderr.write(f"{error}\n")
        return BROKEN_BUNDLE
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return NO_CACHE if isinstance(error, OSError) else UNFIT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
