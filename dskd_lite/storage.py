"""Files that are either whole or not there."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dskd_lite.errors import InputError

if TYPE_CHECKING:  # the command's help must not wait for torch
    from torch import Tensor


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; only what was written without an error becomes ``path``.

    Raises InputError if the disk is full or the place cannot be written; what stood at ``path``
    before is then still there.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; only a folder filled without an error becomes ``path``.

    An older folder at ``path`` stays until the new one is complete.
    Raises InputError if the disk is full or the place cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
                _flush_to_disk(file)
        temporary.chmod(0o755)
        if path.exists():
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, aside / path.name)  # Windows replaces no folder, not even an empty one
            try:
                os.replace(temporary, path)
            except OSError:
                os.replace(aside / path.name, path)
                raise
            finally:
                if path.exists():
                    shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_table(file: Path, lines: Iterable[Sequence[object]]) -> None:
    """Write lines as CSV, whole or not at all; raises InputError if it cannot be written."""
    with (
        whole_file(file) as temporary,
        # A name that is no text in this system's encoding goes out with the bytes that it has.
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        csv.writer(stream).writerows(lines)


def check_place(path: Path) -> None:
    """Raise InputError if ``path`` can be no folder that is written to; makes nothing."""
    try:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise unwritable(path, error) from error
    if not existing.is_dir():
        raise InputError(f"{path} cannot be a folder: {existing} is a file; choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing} cannot be written to: choose another --out")


def beside(path: Path) -> Path:
    """The folder for what belongs beside a folder: its parent, or where that is read-only itself.

    A folder that may be written in one that may not is what a container is given.
    """
    parent = Path(os.path.abspath(path)).parent
    closed = path.is_dir() and not os.access(parent, os.W_OK | os.X_OK)
    return path if closed else parent


def cache_beside(path: Path) -> Path:
    """The folder for decoded images beside a run: our own, as ``.cache`` may be a home folder's."""
    return beside(path) / ".cache" / "dskd_lite"


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Keep other processes that lock ``path`` waiting.

    Raises InputError if its folder cannot be written, or, without ``wait``, another has the lock.
    On the few file systems that know no locks nobody waits.
    """
    from filelock import FileLock, Timeout

    try:
        folder = beside(path)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{path.name}.lock")
        lock.acquire(blocking=wait)
    except NotImplementedError:
        pass
    except Timeout as error:  # an OSError
        raise InputError(
            f"another process is writing {path}: wait for it, or choose another --out"
        ) from error
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, content: Any) -> None:
    """Write JSON with a newline at the end, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; raises InputError if the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: it is not JSON ({error})") from error


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors; a failure is an OSError, whatever the library calls it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    try:
        save_file(contiguous, path, metadata)
    except SafetensorError as error:  # its only failure on contiguous tensors is writing
        raise OSError(str(error)) from error


def unwritable(path: Path, error: OSError) -> InputError:
    """Say in one line why ``path`` could not be written."""
    return InputError(
        f"{path} could not be written ({error.strerror or error}): free some disk space or choose "
        "another place; what was there before is untouched"
    )


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
