"""Records written in shards, which processes and hosts share among each other.

The work of a data set lies in ``KEY/incomplete.VERSION`` until it is done:

* ``records/``: the shards that are finished, under their final names, so that a
  preparation that was killed is continued;
* ``heads/``: their heads (``records.Head``), each of which is there before its shard;
* ``work/``: shards that are being written, and their claims.  A claim only saves work:
  a shard that two processes write is the same file twice, put in place atomically.

The whole becomes ``KEY/VERSION`` by one rename.  Folders may be shared by hosts.
"""

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from segjax import files
from segjax.data import records
from segjax.data.layout import Recipe
from segjax.errors import UserError

RECORDS = 64
"""Records of a shard, of which a killed process loses one; more in large splits."""
SHARDS = 256
"""Most shards of a split, each of which a reader keeps open."""
STALE_SECONDS = 60.0
"""A claim that its owner has not renewed for so long counts no more."""
_RENEW_SECONDS = 5.0
_PAUSE_SECONDS = 0.2


class Shard(NamedTuple):
    """Records ``start`` to ``stop`` of a split, in one file."""

    split: str
    start: int
    stop: int
    file: str
    """Its name, as TFDS forms it."""


class Progress(NamedTuple):
    """What has happened to a shard."""

    shard: Shard
    records: int
    """So many of its records are written, here or by another process."""
    problem: str = ""
    """What is wrong with the last one; the shard is then read on, but not kept."""
    finished: bool = False


def shards_of(recipe: Recipe) -> list[Shard]:
    """The shards of all splits, in order."""
    shards = []
    for split, items in recipe.splits.items():
        size = max(RECORDS, math.ceil(len(items) / SHARDS))
        count = math.ceil(len(items) / size)
        for i in range(count):
            start, stop = i * size, min((i + 1) * size, len(items))
            file = f"{recipe.form.name}-{split}.array_record-{i:05d}-of-{count:05d}"
            shards.append(Shard(split, start, stop, file))
    return shards


def is_complete(folder: Path) -> bool:
    """Whether a folder holds all records: the metadata come last."""
    return os.path.isfile(folder / "dataset_info.json")


def partial_of(folder: Path) -> Path:
    """Where the records of ``folder`` are until all of them are written."""
    return folder.with_name(f"incomplete.{folder.name}")


def write(recipe: Recipe, folder: Path, *, processes: int = 1) -> Iterator[Progress]:
    """Writes the records that are not there yet, and then renames their folder.

    Args:
      recipe: of the records.
      folder: where they shall be: DATA_DIR/NAME/KEY/VERSION.
      processes: that write; with 1, this one does.

    Yields:
      What has been done, a shard of another process included.

    Raises:
      UserError: images are bad (after all others have been read), or a process died.
      OSError: the folder cannot be written.
    """
    partial = partial_of(folder)
    try:
        for name in ("records", "heads", "work"):
            (partial / name).mkdir(parents=True, exist_ok=True)
        left = {} if is_complete(folder) else {s.file: s for s in shards_of(recipe)}
        problems: dict[tuple[str, int], str] = {}
        processes = min(processes, len(left))
        run = _run_alone if processes < 2 else _run_together
        for event in run(recipe, left, partial=partial, processes=processes):
            if event.problem:
                at = event.shard.split, event.shard.start + event.records - 1
                problems[at] = event.problem
            yield event
        if problems:
            first, *others = [problems[at] for at in sorted(problems)]
            more = f" (and {len(others)} more like it)" if others else ""
            raise UserError(f"{first}{more}")
        if not is_complete(folder):
            _finish(recipe, partial, folder)
        shutil.rmtree(partial, ignore_errors=True)
    except OSError:
        # Where another process was faster, what this one looked for is gone.
        if not is_complete(folder):
            raise
        shutil.rmtree(partial, ignore_errors=True)


def _finish(recipe: Recipe, partial: Path, folder: Path) -> None:
    from segjax.data import builder

    heads: dict[str, list[records.Head]] = {}
    splits: dict[str, list[builder.ShardSize]] = {}
    for shard in shards_of(recipe):
        size = os.path.getsize(partial / "records" / shard.file)
        entry = builder.ShardSize(shard.stop - shard.start, size)
        splits.setdefault(shard.split, []).append(entry)
        noted = json.loads((partial / "heads" / shard.file).read_text())
        heads.setdefault(shard.split, []).extend(noted)
    with tempfile.TemporaryDirectory(dir=partial / "work") as own:
        builder.write_metadata(Path(own), recipe.form, key=recipe.key, splits=splits)
        files.write_json(Path(own, records.HEADS), heads, indent=None)
        # Whole files: another process may be doing the same.
        for name in os.listdir(own):
            os.replace(Path(own, name), partial / "records" / name)
    os.rename(partial / "records", folder)


# --- Sharing


def _run_alone(
    recipe: Recipe, left: dict[str, Shard], *, partial: Path, processes: int
) -> Iterator[Progress]:
    """Writes the shards of ``left``, and waits for those of other processes."""
    del processes  # this one
    while left:
        yield from _found(left, partial)
        shard = _claim_next(left, partial)
        if shard is None:
            time.sleep(_PAUSE_SECONDS if left else 0)
            continue
        renewed = time.monotonic()
        items = recipe.splits[shard.split][shard.start : shard.stop]
        for event in write_shard(recipe, shard, items, partial=partial):
            renewed = _renew([shard], partial, renewed)
            yield event
        left.pop(shard.file)
        _release(shard, partial)


def _run_together(
    recipe: Recipe, left: dict[str, Shard], *, partial: Path, processes: int
) -> Iterator[Progress]:
    """As ``_run_alone``, with processes that write a shard each."""
    context = multiprocessing.get_context("spawn")
    # Workers get the items of a shard at a time: those of a large data set, with their
    # annotations, may take gigabytes.
    lean = recipe._replace(splits={})
    workers: dict[Connection, tuple[Any, Shard | None]] = {}
    try:
        for _ in range(processes):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=_work, args=(theirs, lean, partial), daemon=True
            )
            worker.start()
            theirs.close()  # so that its end is noticed
            workers[ours] = (worker, None)
        renewed = time.monotonic()
        while left or any(shard for _, shard in workers.values()):
            if not all(shard for _, shard in workers.values()):
                yield from _found(left, partial)
            for pipe, (worker, shard) in workers.items():
                if shard is None and (shard := _claim_next(left, partial)):
                    workers[pipe] = (worker, left.pop(shard.file))
                    items = recipe.splits[shard.split][shard.start : shard.stop]
                    pipe.send((shard, items))
            busy = [pipe for pipe, (_, shard) in workers.items() if shard]
            if not busy:
                time.sleep(_PAUSE_SECONDS if left else 0)
            ready = wait(busy, timeout=_PAUSE_SECONDS) if busy else []
            for pipe in [pipe for pipe in busy if pipe in ready]:
                worker, shard = workers[pipe]
                event = _receive(pipe, worker)
                if event is not None:
                    yield event
                elif shard is not None:
                    _release(shard, partial)
                    workers[pipe] = (worker, None)
            renewed = _renew([s for _, s in workers.values() if s], partial, renewed)
    finally:
        for worker, shard in workers.values():
            worker.terminate()
            worker.join()
            if shard:
                _release(shard, partial)


def _receive(pipe: Connection, worker: Any) -> Progress | None:
    """What a worker says: None when its shard is over; raises its error."""
    try:
        event = pipe.recv()
    except (EOFError, ConnectionError):
        worker.join()
        if worker.exitcode >= 0:  # it has printed why
            raise RuntimeError("a process that writes records has failed") from None
        raise UserError(
            f"a process that writes records was killed (signal {-worker.exitcode}), "
            "usually because memory ran out; start the same command again, with fewer "
            "--processes"
        ) from None
    if isinstance(event, Exception):
        raise event
    return event


def _work(pipe: Connection, recipe: Recipe, partial: Path) -> None:
    """A worker: writes the shards that it is sent, as long as there is a sender."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program
    cv2.setNumThreads(1)  # there is a process for each core
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            shard, items = pipe.recv()
            try:
                for event in write_shard(recipe, shard, items, partial=partial):
                    pipe.send(event)
                pipe.send(None)
            except ConnectionError:
                raise
            except OSError as error:
                pipe.send(error)


def write_shard(
    recipe: Recipe, shard: Shard, items: Sequence[Any], *, partial: Path
) -> Iterator[Progress]:
    """Writes one shard; one with a bad image is read to its end, but not kept.

    Raises:
      OSError: it cannot be written.
    """
    # Imported on demand: TFDS takes a second.
    from segjax.data import builder

    encode = builder.encoder(recipe.form)
    bad, heads = False, []
    with tempfile.TemporaryDirectory(dir=partial / "work") as folder:
        own = Path(folder, shard.file)
        with builder.open_shard(own) as writer:
            for number, item in enumerate(items, 1):
                problem = ""
                try:
                    record = recipe.record(shard.split, item)
                    heads.append(records.head_of(record))
                    record.pop("identity", "")
                    if not bad:
                        writer.write(encode(record))
                except UserError as error:
                    bad, problem = True, str(error)
                yield Progress(shard, number, problem)
        if not bad:
            files.write_json(Path(folder, "heads"), heads, indent=None)
            os.replace(Path(folder, "heads"), partial / "heads" / shard.file)
            os.replace(own, partial / "records" / shard.file)
            yield Progress(shard, len(items), finished=True)


# --- Claims


def _found(left: dict[str, Shard], partial: Path) -> Iterator[Progress]:
    """Takes those shards out of ``left`` that are there."""
    there = set(os.listdir(partial / "records"))
    for file in [file for file in left if file in there]:
        shard = left.pop(file)
        yield Progress(shard, shard.stop - shard.start, finished=True)


def _claim_next(left: dict[str, Shard], partial: Path) -> Shard | None:
    """The first shard that no other process claims; None if there is none."""
    for shard in left.values():
        if _claim(shard, partial):
            if not (partial / "records" / shard.file).exists():
                return shard
            _release(shard, partial)  # another process has written it meanwhile
    return None


def _owner() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _claim_of(shard: Shard, partial: Path) -> Path:
    return partial / "work" / f"{shard.file}.claim"


def _claim(shard: Shard, partial: Path) -> bool:
    path = _claim_of(shard, partial)
    for _ in range(2):
        try:
            with open(path, "x") as file:
                file.write(_owner())
            return True
        except FileExistsError:
            if not is_stale(path):
                return False
            path.unlink(missing_ok=True)
    return False


def is_stale(claim: Path) -> bool:
    """Whether the owner of a claim is dead, as far as that can be told from here."""
    try:
        text, age = claim.read_text(), time.time() - claim.stat().st_mtime
    except FileNotFoundError:
        return True
    host, _, process = text.partition(" ")
    if text == _owner():  # of an earlier process with the same number
        return True
    if host == socket.gethostname() and process.isdecimal():
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # alive, and of another user
    return age > STALE_SECONDS


def _renew(shards: Sequence[Shard], partial: Path, last: float) -> float:
    """Says that the claims hold, every few seconds; returns when that was last done."""
    if time.monotonic() - last < _RENEW_SECONDS:
        return last
    for shard in shards:
        with contextlib.suppress(FileNotFoundError):
            os.utime(_claim_of(shard, partial))
    return time.monotonic()


def _release(shard: Shard, partial: Path) -> None:
    _claim_of(shard, partial).unlink(missing_ok=True)
