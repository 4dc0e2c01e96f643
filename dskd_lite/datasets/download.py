"""Fetch a public dataset: its terms first, then resumed, verified by SHA-256, unpacked whole.

Nothing appears under its own name before it is known to be right: bytes arrive in ``*.part``, which
becomes the archive only when its hash is the published one, and files are unpacked beside the
place where the finished folder then appears at once. An archive fetched with a browser and put
where the command would have put it is taken as if it had been downloaded.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import lzma
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from dskd_lite.errors import InputError
from dskd_lite.storage import read_json, unwritable, whole_folder, write_json

# Called with what is being done ("download", "verify", "unpack"), bytes done, bytes in all.
Progress = Callable[[str, int, int], None]

STALL_TIMEOUT_S = 30.0  # a connection that brings nothing for so long is dropped
ATTEMPTS = 5  # connections that together bring less than a CHUNK
BACKOFF_S = 1.0  # waited before the second attempt; doubled before each further one
CHUNK = 1 << 20
RECEIPT = "download.json"

# Image files are compressed already and CIFAR's raw batches shrink by about a tenth: an archive
# that grows by more than half is not what it claims to be. The room reserved, and where to stop.
MOST_GROWTH = 1.5
FILE_OVERHEAD = 512  # bytes charged for each member, so that a million empty files are no way round
TAR_PADDING = 1 << 20


@dataclass(frozen=True)
class DatasetSource:
    """Where a dataset is published, what it weighs, and its terms."""

    title: str
    url: str  # the publisher's own address of the archive
    page: str  # the page to open in a browser when that address is dead
    size: int | None  # bytes of the archive; None where only a rounded figure is public
    sha256: str
    hash_origin: str  # who made the hash public
    licence: str
    terms: str
    licence_url: str
    folder: str  # name of the unpacked folder
    root: str = ""  # the archive's own wrapping folder, which ``folder`` takes the place of

    @property
    def archive(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]

    def notice(self) -> str:
        """One line to show before anything is fetched; the size where it is known."""
        size = f", {self.size / 1e9:.2f} GB" if self.size else ""
        return f"{self.title}{size}. Licence: {self.licence}. {self.terms} See {self.licence_url}"

    def by_hand(self, out: Path) -> str:
        """What to do when no address works, in one line."""
        size = f"{self.size} bytes, " if self.size else ""
        return (
            f"fetch {self.archive} ({size}SHA-256 {self.sha256}) from {self.page} with a browser, "
            f"put it at {out / self.archive} and run the same command again"
        )


def _mvtec(
    title: str, path: str, size: int | None, sha256: str, origin: str, folder: str, root: str = ""
) -> DatasetSource:
    return DatasetSource(
        title=title,
        url=f"https://www.mydrive.ch/shares/{path}",
        page="https://www.mvtec.com/research-teaching/datasets/mvtec-ad/downloads",
        size=size,
        sha256=sha256,
        hash_origin=f"{origin}; MVTec publishes none",
        licence="Creative Commons BY-NC-SA 4.0",
        terms="Not for commercial purposes; name the source; share changed copies alike.",
        licence_url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
        folder=folder,
        root=root,
    )


# MVTec moves its shares now and then (in 2022, 2025 and 2026): then a hash still finds the file.
_TWICE = "recorded alike by two unrelated public download scripts"
_ONCE = "recorded by one public download script, whose other hashes a second one confirms"
_MVTEC_CATEGORIES = {
    "bottle": (
        "150452/132a93367fb17cdf968dfb5c4013f6e7/download/420937370-1629958698",
        155_880_244,
        "726512129cb3b1f47d4f6cd7c7fc9170db7fc209132249c788fec06029cb5dc3",
        _TWICE,
    ),
    "cable": (
        "150453/10f960e07fec2838b2cd512586633a32/download/420937413-1629958794",
        None,
        "1e3d59b80a6a8da5adf32fb0cf311c7b964cde146d6920aef9ca66380999a9cd",
        _ONCE,
    ),
    "capsule": (
        "150454/e0ce6dd74eb150f46c0d98131b3703f2/download/420937454-1629958872",
        None,
        "f6a41cb11f1589d552888fe9c43a1adcbcae15b70073e19093322f836d00a2b6",
        _TWICE,
    ),
    "carpet": (
        "150455/eac7fbce84d93a5094e13f391170eca4/download/420937484-1629959013",
        None,
        "d9dd5064515a20bd75cf24d223c570579141abd72388beef892780b74dbaa85d",
        _TWICE,
    ),
    "grid": (
        "150456/bb0b2e3dc804ccb8b4485e01f8e4493b/download/420937487-1629959044",
        160_763_852,
        "d94a9a651cbfaee22c94d06cf8fa8204a590c872362de0489eb34f1645328de8",
        _TWICE,
    ),
    "hazelnut": (
        "150457/51d49f65e84bdc100ff8035d7dd783ea/download/420937545-1629959162",
        None,
        "a7f4e7d65a60a235def7236a46fcb854d62e6c6917c16b1ec9cb4ff089d3b0da",
        _ONCE,
    ),
    "leather": (
        "150458/923030ce14e10a7d147e95d0f8885f6b/download/420937607-1629959262",
        None,
        "704ffa48b1dc2fc44824aa50442d9febc399dd92a5d6fd8156f8aa0373d15f24",
        _ONCE,
    ),
    "metal_nut": (
        "150459/c68856a21dca589b0f8ff6d4ee0f18f4/download/420937637-1629959294",
        165_414_484,
        "86e3c8e163ceb19146ad3ddc408e85cc34ae02e0da430e07a73bac6bbb48532a",
        _TWICE,
    ),
    "pill": (
        "150460/d4f1c04da67034ccc8d8b5fa3e73f244/download/420938129-1629960351",
        None,
        "ac6ce9ec4ec2a5d67c906d82147bd7431980cf00b78f25d63201a5f17e3a2038",
        _ONCE,
    ),
    "screw": (
        "150461/242f454cc6385e5693c4fd4b94567d1e/download/420938130-1629960389",
        195_344_332,
        "0a27a365a21e472d19b9fb48cb8e4002b49fabe083bff7f4c16fa57d78154f10",
        _TWICE,
    ),
    "tile": (
        "150462/5479f0fdc97bc6fa16eab0cb0cf0109f/download/420938133-1629960456",
        None,
        "392228153b96d0db9f179d3f7c2d63e131e907154883b57309fcbf798643173c",
        _ONCE,
    ),
    "toothbrush": (
        "150463/895a1a5fb84b958f07417784b060434b/download/420938134-1629960477",
        109_357_096,
        "fe72a34b4b0d074f84e844be7ef8c4f64f7f02f20e25f19c9e3b4a231c8bea77",
        _TWICE,
    ),
    "transistor": (
        "150464/99b8ea0332438d64fcc2475ee73f9c29/download/420938166-1629960554",
        None,
        "146b2166c35a1d0cf37ded091366ac01a50338b4ac704632f1239890eaca4449",
        _TWICE,
    ),
    "wood": (
        "150465/d5b4115b720cdb54d217e75636e6e374/download/420938383-1629960649",
        None,
        "3757297ac2a266072eb4f25a97f805f5b37fd583492b20bd709f310736c1ea47",
        _ONCE,
    ),
    "zipper": (
        "150466/bd155b557520edaf692d9bfdb915c24a/download/420938385-1629960680",
        159_484_784,
        "7ab46e0e195da145db30052baea3d3a5d14c5f0e710137c968e0423f02cb942d",
        _TWICE,
    ),
}

DATASETS: dict[str, DatasetSource] = {
    "mvtec": _mvtec(
        "MVTec AD, all 15 categories",
        "150996/b52ecdcbf521176e9db9c731f2304b27/download/420938113-1629960298/"
        "mvtec_anomaly_detection.tar.xz",
        5_264_982_680,
        "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        "recorded by anomalib (MVTecAD data module)",
        folder="mvtec",
    ),
    **{
        f"mvtec-{category}": _mvtec(
            f"MVTec AD, category {category}",
            f"{path}/{category}.tar.xz",
            size,
            sha256,
            origin,
            folder=category,
            root=category,
        )
        for category, (path, size, sha256, origin) in _MVTEC_CATEGORIES.items()
    },
    "dtd": DatasetSource(
        title="Describable Textures Dataset r1.0.1",
        url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        page="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        size=625_239_812,
        sha256="e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
        hash_origin="recorded by TensorFlow Datasets and anomalib; the authors publish none",
        licence="none named",
        terms="Made available to the computer vision community for research purposes.",
        licence_url="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        folder="dtd",
        root="dtd",
    ),
    "cifar10": DatasetSource(
        title="CIFAR-10, Python version",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        size=170_498_071,
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        hash_origin="recorded by Keras; the authors publish MD5 c58f30108f718f92721af3b95e74349a",
        licence="none named",
        terms="The authors ask to cite Krizhevsky, Learning Multiple Layers of Features from Tiny "
        "Images, 2009.",
        licence_url="https://www.cs.toronto.edu/~kriz/cifar.html",
        folder="cifar-10-batches-py",  # what torchvision looks for under its root
        root="cifar-10-batches-py",
    ),
}


def download_dataset(
    name: str,
    out: Path,
    accept_licence: bool,
    url: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch, verify and unpack a dataset named in ``DATASETS``; return its folder in ``out``.

    ``url`` is a mirror to use instead of the publisher's address; the file must be the same one.
    A folder that is already there, an archive put there by hand and a download cut short are all
    picked up where they are. The archive stays beside the folder.

    Raises InputError, naming the flag, while the licence is not accepted; and if the address is
    dead, the file is another than the published one, the disk is too small, the archive is
    malicious, or something else already stands in the folder's place.
    """
    if name not in DATASETS:
        raise InputError(f"there is no dataset {name!r} to download: choose {', '.join(DATASETS)}")
    source, out = DATASETS[name], Path(out)
    target = out / source.folder
    if target.exists():
        if (target / RECEIPT).is_file():
            return target
        raise InputError(
            f"{target} exists but was not put there by this command: use it as it is, move it away "
            "or choose another folder"
        )
    url = url or source.url
    if not url.startswith(("https://", "http://")):
        raise InputError(
            f"{url} is not an http address: a file at hand belongs at {out / source.archive}"
        )
    if not accept_licence:
        raise InputError(f"{source.notice()} Accept these terms with --accept-licence")

    report = progress or (lambda stage, done, total: None)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _only_process(out):
            archive = out / source.archive
            if archive.exists():
                complaint = _mismatch(archive, source, report)
                if complaint:
                    raise InputError(
                        f"{archive} is not the published file ({complaint}): delete it, then run "
                        f"the command again, or {source.by_hand(out)}"
                    )
            else:
                _download(source, url, archive, report)
            _unpack(source, archive, target, report)
    except OSError as error:
        raise unwritable(out, error) from error
    return target


class _TryAgain(Exception):
    """A failure that another connection may not have."""


class _GiveUp(Exception):
    """A failure that every connection would have."""


def _only_process(out: Path) -> AbstractContextManager[object]:
    """Hold ``out`` for this process; two would write into one ``*.part``."""
    from filelock import FileLock, Timeout  # comes with torch

    lock = FileLock(out / ".download.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process is downloading into {out}: wait for it to end") from None


def _download(source: DatasetSource, url: str, archive: Path, report: Progress) -> None:
    """Bring the archive to its place, or leave nothing there."""
    part = archive.with_name(f"{archive.name}.part")
    try:
        resumed = _fetch(source, url, part, report)
        complaint = _mismatch(part, source, report)
        if complaint and resumed:  # the older bytes may be what is wrong
            _discard(part)
            _fetch(source, url, part, report)
            complaint = _mismatch(part, source, report)
    except _GiveUp as error:
        raise InputError(
            f"{source.title} could not be downloaded from {url} ({error}): "
            f"{source.by_hand(archive.parent)}"
        ) from error
    if complaint:
        _discard(part)
        raise InputError(
            f"{url} sent another file than the published one and nothing of it was kept "
            f"({complaint}; {source.hash_origin}): {source.by_hand(archive.parent)}"
        )
    part.replace(archive)
    _state(part).unlink()


def _fetch(source: DatasetSource, url: str, part: Path, report: Progress) -> bool:
    """Fill ``part`` to its full length; return whether it holds bytes of several connections."""
    failures, furthest = 0, _length(part)
    while True:
        try:
            return _transfer(source, url, part, report)
        except _TryAgain as error:
            failures += 1
            # Only a real advance earns new attempts: a server may drip a byte per connection.
            if _length(part) >= furthest + CHUNK:
                failures, furthest = 1, _length(part)
            if failures == ATTEMPTS:
                raise _GiveUp(f"{error}; {ATTEMPTS} attempts got no further") from error
            time.sleep(BACKOFF_S * 2 ** (failures - 1))


def _transfer(source: DatasetSource, url: str, part: Path, report: Progress) -> bool:
    """One connection. Returns whether bytes from earlier ones were kept.

    Raises _TryAgain or _GiveUp, and InputError if the disk is too small.
    """
    have = _length(part)
    state = read_json(_state(part)) if have and _state(part).exists() else {}
    if state.get("url") != url:
        have = 0
    elif have == state["total"]:
        return True

    headers = {"User-Agent": "dskd_lite", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if state["validator"]:
            headers["If-Range"] = state["validator"]
    with _open(urllib.request.Request(url, headers=headers), part) as response:
        etag, modified = response.headers["ETag"], response.headers["Last-Modified"]
        validator = etag if etag and not etag.startswith("W/") else modified
        if response.status == 206:
            start = re.match(r"bytes (\d+)-", response.headers["Content-Range"] or "")
            if not start or int(start[1]) != have:
                _discard(part)
                raise _TryAgain("the server sent another part of the file than it was asked for")
        else:
            have = 0  # the server does not resume, or the file is another one by now
        total = source.size if response.length is None else have + response.length
        if total is None:
            raise _GiveUp("the server does not say how long the file is")
        if source.size and total != source.size:
            raise _GiveUp(f"the server offers {total} bytes, the published file has {source.size}")
        _need(part.parent, total - have + _unpacked_limit(total))

        write_json(_state(part), {"url": url, "validator": validator, "total": total})
        kept = have > 0
        with part.open("ab" if kept else "wb") as file:
            while have < total:
                try:
                    block = response.read1(min(CHUNK, total - have))
                except (OSError, http.client.HTTPException) as error:
                    raise _TryAgain(_reason(error)) from error
                if not block:
                    raise _TryAgain(f"the connection closed after {have} of {total} bytes")
                file.write(block)
                have += len(block)
                report("download", have, total)
    return kept


def _open(request: urllib.request.Request, part: Path) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(request, timeout=STALL_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"HTTP {error.code} {error.reason}"
        if error.code == 416:  # the file there ends before the partial one does
            _discard(part)
        if error.code in (408, 416, 425, 429) or error.code >= 500:
            raise _TryAgain(reason) from error
        raise _GiveUp(reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgain(_reason(error)) from error


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return f"no data for {STALL_TIMEOUT_S:g} s"
    return str(cause) or type(cause).__name__


def _state(part: Path) -> Path:
    """Where the address and version that ``part`` was begun from are written down."""
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state(part).unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mismatch(path: Path, source: DatasetSource, report: Progress) -> str | None:
    """Say how a file differs from the published one, or None."""
    size = _length(path)
    if source.size and size != source.size:
        return f"{size} bytes, expected {source.size}"
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
            done += len(block)
            report("verify", done, size)
    if digest.hexdigest() != source.sha256:
        return f"SHA-256 {digest.hexdigest()}, expected {source.sha256}"
    return None


def _unpacked_limit(archive_size: int) -> int:
    return int(MOST_GROWTH * archive_size) + TAR_PADDING


def _need(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(
            f"{folder} has {free / 1e9:.2f} GB free and {size / 1e9:.2f} GB are needed: free some "
            "space or choose another disk"
        )


def _unpack(source: DatasetSource, archive: Path, target: Path, report: Progress) -> None:
    """Unpack plain files and folders, with no rights or owners taken over from the archive.

    The files are written here rather than by ``tarfile.extract``: its ``data`` filter is missing
    from early 3.11 releases and was itself escaped (CVE-2025-4517), and MVTec's folders
    are marked read-only. With no link ever made, a name without ``..`` cannot lead out.
    """
    # A killed run leaves the unfinished folder that whole_folder would have removed.
    for leftover in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(leftover)
    limit = _unpacked_limit(_length(archive))
    _need(target.parent, limit)
    room = limit
    with whole_folder(target) as folder:
        try:
            for name, size, stream in _members(archive, limit, report):
                room -= size + FILE_OVERHEAD
                if room < 0:
                    raise _bomb(archive, limit)
                parts = _inside(archive, name)
                place = folder.joinpath(*parts[1:] if parts[:1] == (source.root,) else parts)
                if stream is None:
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("xb") as file:
                    shutil.copyfileobj(stream, file, CHUNK)
        except _DAMAGE as error:
            raise InputError(
                f"{archive} cannot be unpacked ({error}) and nothing of it was kept: delete it"
            ) from error
        write_json(
            folder / RECEIPT,
            {
                "dataset": source.title,
                "archive": source.archive,
                "sha256": source.sha256,
                "published at": source.url,
                "licence": source.licence,
                "licence text": source.licence_url,
            },
        )


_DAMAGE = (
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    FileExistsError,  # two members of one name, also where only the case differs
    NotADirectoryError,
)


def _members(
    archive: Path, limit: int, report: Progress
) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Yield name, size in bytes and content (None for a folder) of each member, in order."""
    decompress = lzma.open if archive.suffix == ".xz" else gzip.open
    with (
        archive.open("rb") as raw,
        decompress(raw) as plain,
        tarfile.open(fileobj=_Bounded(plain, archive, limit), mode="r|") as opened,
    ):
        for member in opened:
            if not (member.isreg() or member.isdir()):
                raise _malicious(archive, member.name, "is no plain file or folder")
            yield member.name, member.size, opened.extractfile(member)
            report("unpack", raw.tell(), _length(archive))


class _Bounded:
    """A stream that may give ``limit`` bytes and no more: headers too can be bombs."""

    def __init__(self, stream: IO[bytes], archive: Path, limit: int) -> None:
        self.stream, self.archive, self.limit, self.given = stream, archive, limit, 0

    def read(self, size: int) -> bytes:
        block = self.stream.read(size)
        self.given += len(block)
        if self.given > self.limit:
            raise _bomb(self.archive, self.limit)
        return block


def _inside(archive: Path, name: str) -> tuple[str, ...]:
    """Parts of a member's name; raises InputError if it could lead out, on any system."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or any(sign in name for sign in "\\:\0"):
        raise _malicious(archive, name, "leads out of the folder")
    return parts


def _malicious(archive: Path, name: str, why: str) -> InputError:
    return InputError(
        f"{archive} was not unpacked: {name[:200]!r} in it {why}; delete the archive and get it "
        "from its publisher"
    )


def _bomb(archive: Path, limit: int) -> InputError:
    return InputError(
        f"{archive} was not unpacked: it grows past {limit} bytes; delete the archive and get it "
        "from its publisher"
    )
