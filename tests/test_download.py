"""Downloads, against a server on this machine that does everything wrong a server can do."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from dskd_lite.datasets import download
from dskd_lite.datasets.download import DATASETS, DatasetSource, download_dataset
from dskd_lite.errors import InputError

Publish = Callable[..., DatasetSource]

FILES = {
    "train/good/000.png": random.Random(0).randbytes(90_000),
    "test/crack/000.png": random.Random(1).randbytes(70_000),
    "license.txt": b"look, but do not sell",
}

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the next answer of the script; the last one answers all that follow."""

    def do_GET(self) -> None:
        script, asked = self.server.script, self.server.asked
        asked.append(dict(self.headers))
        script[min(len(asked), len(script)) - 1](self)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Answer] = []
        self.asked: list[dict[str, str]] = []
        self.over = threading.Event()

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


def serve(
    content: bytes,
    *,
    stop_at: int | None = None,
    stall: bool = False,
    announce: int | None = None,
    ranges: bool = True,
    etag: str | None = '"one"',
    honour_if_range: bool = True,
) -> Answer:
    """An answer that sends ``content``; ``stop_at`` bytes into the file it closes, or stalls."""

    def answer(handler: Handler) -> None:
        asked = re.match(r"bytes=(\d+)-", handler.headers["Range"] or "")
        start = int(asked[1]) if asked and ranges else 0
        if honour_if_range and handler.headers["If-Range"] not in (None, etag):
            start = 0
        if start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if etag:
            handler.send_header("ETag", etag)
        length = len(content) - start if announce is None else announce
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        try:
            handler.wfile.write(content[start:stop_at])
            if stall:
                handler.wfile.flush()
                handler.server.over.wait(10)
        except OSError:
            pass  # the client has hung up, as it should

    return answer


def status(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


def tar(
    files: dict[str, bytes],
    mode: str = "w:gz",
    wrapper: str = "",
    extra: list[tuple[tarfile.TarInfo, bytes]] = (),
) -> bytes:
    """A tar of ``files``, marked read-only as MVTec's are, then the ``extra`` members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        if wrapper:
            folder = tarfile.TarInfo(wrapper)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o555
            archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(f"{wrapper}/{name}" if wrapper else name)
            info.size, info.mode = len(content), 0o444
            archive.addfile(info, io.BytesIO(content))
        for info, content in extra:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "STALL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(download, "BACKOFF_S", 0.01)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DatasetSource]:
    """Make dataset "toy" from an archive's bytes, published on the server."""

    def publish(content: bytes, name: str = "toy.tar.gz", **changes: object) -> DatasetSource:
        source = DatasetSource(
            title="Toy",
            url=server.address(name),
            page="https://toy.example/downloads",
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            hash_origin="made here",
            licence="Toy licence 1.0",
            terms="Look, but do not sell.",
            licence_url="https://toy.example/licence",
            folder="toy",
        )
        source = replace(source, **changes)
        monkeypatch.setitem(DATASETS, "toy", source)
        server.script = [serve(content)]
        return source

    return publish


def fetch(out: Path, **options: object) -> Path:
    return download_dataset("toy", out, accept_licence=True, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != download.RECEIPT
    }


def left(out: Path) -> set[str]:
    """Names in ``out``, but for the lock."""
    return {p.name for p in out.iterdir()} - {".download.lock"}


def fails(out: Path, **options: object) -> str:
    """Fetch, expect one line of explanation, and return it."""
    with pytest.raises(InputError) as caught:
        fetch(out, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- a server that does as it should


@pytest.mark.parametrize(
    ("name", "content", "root"),
    [
        ("toy.tar.gz", tar(FILES), ""),
        ("toy.tar.xz", tar(FILES, "w:xz"), ""),
        ("toy.tar.xz", tar(FILES, "w:xz", wrapper="toy"), "toy"),
    ],
)
def test_files_arrive_as_they_were_packed(
    publish: Publish, tmp_path: Path, name: str, content: bytes, root: str
) -> None:
    publish(content, name, root=root)
    seen = []
    folder = fetch(tmp_path / "data", progress=lambda *step: seen.append(step))
    assert folder == tmp_path / "data" / "toy"
    assert contents(folder) == FILES
    assert left(tmp_path / "data") == {"toy", name}
    assert [stage for i, (stage, *_) in enumerate(seen) if not i or seen[i - 1][0] != stage] == [
        "download",
        "verify",
        "unpack",
    ]
    assert all(0 < done <= total for _, done, total in seen)
    (folder / "train" / "good" / "mine.png").write_bytes(
        b""
    )  # read-only rights were not taken over


def test_nothing_is_asked_before_the_licence_is_accepted(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    source = publish(tar(FILES))
    with pytest.raises(InputError) as caught:
        download_dataset("toy", tmp_path, accept_licence=False)
    for part in ("--accept-licence", source.licence, source.terms, source.licence_url):
        assert part in str(caught.value)
    assert not server.asked and not left(tmp_path)


def test_a_second_call_finds_everything_there(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    publish(tar(FILES))
    fetch(tmp_path)
    assert fetch(tmp_path) == download_dataset("toy", tmp_path, accept_licence=False)
    assert len(server.asked) == 1
    shutil.rmtree(tmp_path / "toy")  # and the archive that stayed serves again
    assert contents(fetch(tmp_path)) == FILES
    assert len(server.asked) == 1


def test_mirror(publish: Publish, server: Server, tmp_path: Path) -> None:
    content = tar(FILES)
    publish(content, url="http://127.0.0.1:9/toy.tar.gz")
    assert contents(fetch(tmp_path, url=server.address("other-name"))) == FILES
    assert (tmp_path / "toy.tar.gz").read_bytes() == content


# --- servers that stall, break off, change the file


@pytest.mark.parametrize("stall", [True, False], ids=["stalls", "breaks off"])
def test_resumes_where_a_connection_ended(
    publish: Publish, server: Server, tmp_path: Path, stall: bool
) -> None:
    content = tar(FILES)
    publish(content)
    server.script = [serve(content, stop_at=70_000, stall=stall), serve(content)]
    assert contents(fetch(tmp_path)) == FILES
    assert "Range" not in server.asked[0]
    assert server.asked[1]["Range"] == "bytes=70000-"
    assert server.asked[1]["If-Range"] == '"one"'
    assert len(server.asked) == 2


def test_resumes_after_the_program_was_stopped(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    content = tar(FILES)
    publish(content)
    server.script = [serve(content, stop_at=70_000), status(403)]
    fails(tmp_path)
    assert left(tmp_path) == {"toy.tar.gz.part", "toy.tar.gz.part.json"}
    server.script = [serve(content)]
    assert contents(fetch(tmp_path)) == FILES
    assert server.asked[-1]["Range"] == "bytes=70000-"
    assert left(tmp_path) == {"toy", "toy.tar.gz"}


@pytest.mark.parametrize("stall", [True, False], ids=["stalls", "breaks off"])
def test_gives_up_on_a_server_that_never_gets_further(
    publish: Publish, server: Server, tmp_path: Path, stall: bool
) -> None:
    content = tar(FILES)
    publish(content)
    server.script = [serve(content, stop_at=70_000, stall=stall, ranges=False)]
    message = fails(tmp_path)
    assert ("no data for 0.3 s" if stall else "closed after 70000 of") in message
    assert len(server.asked) == download.ATTEMPTS
    assert "toy" not in left(tmp_path) and "toy.tar.gz" not in left(tmp_path)


def test_starts_over_where_the_server_ignores_ranges(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    content = tar(FILES)
    publish(content)
    server.script = [serve(content, stop_at=70_000), serve(content, ranges=False)]
    assert contents(fetch(tmp_path)) == FILES
    assert len(server.asked) == 2


@pytest.mark.parametrize("honour_if_range", [True, False])
def test_starts_over_when_the_file_changed(
    publish: Publish, server: Server, tmp_path: Path, honour_if_range: bool
) -> None:
    content = tar(FILES)
    publish(content)
    other = bytes(len(content))
    server.script = [
        serve(other, stop_at=70_000, etag='"old"'),
        serve(content, honour_if_range=honour_if_range),
    ]
    assert contents(fetch(tmp_path)) == FILES
    # A server that disregards If-Range joins two files; the hash tells, and all is asked for anew.
    assert len(server.asked) == (2 if honour_if_range else 3)
    assert honour_if_range or "Range" not in server.asked[2]


def test_starts_over_when_resuming_gave_another_file(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    """No ETag, no date: only the hash can tell that the two halves belong to two files."""
    content = tar(FILES)
    publish(content)
    server.script = [
        serve(bytes(len(content)), stop_at=70_000, etag=None),
        serve(content, etag=None),
    ]
    assert contents(fetch(tmp_path)) == FILES
    assert [h.get("Range") for h in server.asked] == [None, "bytes=70000-", None]


def test_a_partial_file_longer_than_the_file_is_dropped(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    content = tar(FILES)
    publish(content, size=None)
    longer = content + bytes(1000)
    server.script = [serve(longer, stop_at=len(content) + 500), serve(content)]
    assert contents(fetch(tmp_path)) == FILES
    assert [h.get("Range") for h in server.asked] == [None, f"bytes={len(content) + 500}-", None]


def test_an_answer_to_another_range_is_not_appended(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    content = tar(FILES)

    def other_part(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(content) - 1}/{len(content)}")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.close_connection = True

    publish(content)
    server.script = [serve(content, stop_at=70_000), other_part, serve(content)]
    assert contents(fetch(tmp_path)) == FILES
    assert [h.get("Range") for h in server.asked] == [None, "bytes=70000-", None]


def test_a_complete_partial_file_is_not_fetched_again(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    """The program was stopped between the last byte and the check."""
    content = tar(FILES)
    source = publish(content)
    (tmp_path / "toy.tar.gz.part").write_bytes(content)
    state = {"url": source.url, "validator": None, "total": len(content)}
    (tmp_path / "toy.tar.gz.part.json").write_text(json.dumps(state))
    assert contents(fetch(tmp_path)) == FILES
    assert not server.asked


def test_a_partial_file_of_another_address_is_not_continued(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    content = tar(FILES)
    publish(content)
    server.script = [serve(bytes(len(content)), stop_at=70_000), status(404), serve(content)]
    fails(tmp_path)
    assert contents(fetch(tmp_path, url=server.address("mirror"))) == FILES
    assert "Range" not in server.asked[-1] and len(server.asked) == 3


def test_a_busy_server_is_asked_again(publish: Publish, server: Server, tmp_path: Path) -> None:
    content = tar(FILES)
    publish(content)
    server.script = [status(503), status(429), serve(content)]
    assert contents(fetch(tmp_path)) == FILES


def test_waits_longer_after_each_failure(
    publish: Publish, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tar(FILES))
    server.script = [status(500)]
    waited = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    assert "HTTP 500" in fails(tmp_path)
    assert waited == [0.01, 0.02, 0.04, 0.08]


def test_a_server_that_often_breaks_off_is_worth_more_attempts(
    publish: Publish, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tar(FILES)
    publish(content)
    monkeypatch.setattr(download, "CHUNK", 20_000)
    server.script = [serve(content, stop_at=n) for n in range(20_000, len(content), 20_000)]
    server.script.append(serve(content))
    assert contents(fetch(tmp_path)) == FILES
    assert len(server.asked) > download.ATTEMPTS


def test_a_dripping_server_is_left_in_the_end(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    """Each connection brings a byte: progress of a kind, but not one to live on."""
    content = tar(FILES)
    publish(content)
    server.script = [serve(content, stop_at=n) for n in range(1, 50)]
    assert "got no further" in fails(tmp_path)
    assert len(server.asked) == download.ATTEMPTS


# --- servers that lie


def test_announces_another_length_than_the_published_one(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    content = tar(FILES)
    publish(content)
    for announce in (len(content) + 1000, len(content) - 1000):
        server.asked.clear()
        server.script = [serve(content, announce=announce)]
        assert f"offers {announce} bytes" in fails(tmp_path)
        assert len(server.asked) == 1 and not left(tmp_path)


def test_announces_more_than_it_sends(publish: Publish, server: Server, tmp_path: Path) -> None:
    content = tar(FILES)
    publish(content, size=None)
    server.script = [serve(content, announce=len(content) + 1000, ranges=False)]
    assert f"closed after {len(content)} of {len(content) + 1000}" in fails(tmp_path)
    assert "toy" not in left(tmp_path) and "toy.tar.gz" not in left(tmp_path)


def test_announces_less_than_it_sends(publish: Publish, server: Server, tmp_path: Path) -> None:
    content = tar(FILES)
    publish(content, size=None)
    server.script = [serve(content, announce=len(content) - 1000)]
    cut = hashlib.sha256(content[:-1000]).hexdigest()
    assert cut in fails(tmp_path)
    assert not left(tmp_path)


def test_announces_nothing_at_all(publish: Publish, server: Server, tmp_path: Path) -> None:
    content = tar(FILES)

    def silent(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)

    publish(content)
    server.script = [silent]
    assert contents(fetch(tmp_path / "known")) == FILES
    publish(content, size=None)
    server.script = [silent]
    assert "how long" in fails(tmp_path / "unknown")


def test_sends_another_file(publish: Publish, server: Server, tmp_path: Path) -> None:
    content = tar(FILES)
    source = publish(content)
    other = bytes(len(content))
    server.script = [serve(other)]
    message = fails(tmp_path)
    assert source.sha256 in message and hashlib.sha256(other).hexdigest() in message
    assert len(server.asked) == 1 and not left(tmp_path)


# --- no server, and files fetched by hand


@pytest.mark.parametrize("dead", [404, 403, 410, None], ids=["404", "403", "410", "refused"])
def test_a_dead_address_says_what_to_fetch_by_hand(
    publish: Publish, server: Server, tmp_path: Path, dead: int | None
) -> None:
    content = tar(FILES)
    source = publish(content)
    place = tmp_path / "toy.tar.gz"
    if dead:
        server.script = [status(dead)]
        message = fails(tmp_path)
        assert f"HTTP {dead}" in message and len(server.asked) == 1
    else:
        message = fails(tmp_path, url="http://127.0.0.1:9/")
        assert "refused" in message
    for part in (source.archive, source.sha256, str(source.size), source.page, str(place)):
        assert part in message

    place.write_bytes(content)
    server.asked.clear()
    assert contents(fetch(tmp_path)) == FILES
    assert not server.asked


@pytest.mark.parametrize("wrong", [b"<html>sign in first</html>", None], ids=["length", "hash"])
def test_a_wrong_file_put_there_by_hand_is_refused_and_kept(
    publish: Publish, server: Server, tmp_path: Path, wrong: bytes | None
) -> None:
    content = tar(FILES)
    source = publish(content)
    wrong = wrong or bytes(len(content))
    (tmp_path / "toy.tar.gz").write_bytes(wrong)
    message = fails(tmp_path)
    assert "not the published file" in message and source.page in message
    assert (tmp_path / "toy.tar.gz").read_bytes() == wrong
    assert left(tmp_path) == {"toy.tar.gz"} and not server.asked


def test_other_addresses_than_http_are_refused(publish: Publish, tmp_path: Path) -> None:
    publish(tar(FILES))
    assert "not an http address" in fails(tmp_path, url="file:///etc/passwd")


def test_a_folder_of_ones_own_is_not_touched(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    publish(tar(FILES))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "mine.txt").write_text("mine")
    assert "was not put there" in fails(tmp_path)
    assert contents(tmp_path / "toy") == {"mine.txt": b"mine"} and not server.asked


def test_unknown_dataset_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'mvtecc'.*mvtec, mvtec-bottle.*cifar10"):
        download_dataset("mvtecc", tmp_path, accept_licence=True)


def test_a_place_that_cannot_be_written(publish: Publish, tmp_path: Path) -> None:
    publish(tar(FILES))
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in fails(tmp_path / "file" / "data")


def test_two_processes_do_not_share_a_partial_file(
    publish: Publish, server: Server, tmp_path: Path
) -> None:
    publish(tar(FILES))
    with FileLock(tmp_path / ".download.lock"):
        assert "another process" in fails(tmp_path)
    assert not server.asked
    assert contents(fetch(tmp_path)) == FILES


# --- disk space


def test_room_for_archive_and_files_is_checked_before_the_first_byte(
    publish: Publish, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tar(FILES)
    publish(content)
    usage = namedtuple("usage", "total used free")
    free = len(content) + int(1.4 * len(content)) + download.TAR_PADDING
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage(0, 0, free))
    assert "are needed" in fails(tmp_path)
    assert not left(tmp_path)
    free = len(content) + int(1.6 * len(content)) + download.TAR_PADDING
    assert contents(fetch(tmp_path)) == FILES


def test_room_for_the_files_is_checked_before_unpacking(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tar(FILES)
    publish(content)
    (tmp_path / "toy.tar.gz").write_bytes(content)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage(0, 0, len(content)))
    assert "are needed" in fails(tmp_path)
    assert left(tmp_path) == {"toy.tar.gz"}


# --- archives that mean harm


def pax(name: str, **headers: str) -> tuple[tarfile.TarInfo, bytes]:
    info, content = member(name)
    info.pax_headers = headers
    return info, content


SPARSE = pax("bomb", **{"GNU.sparse.map": "0,0", "GNU.sparse.size": str(10**12)})
LINKS = {
    "symlink out": [member("door", tarfile.SYMTYPE, "../../outside")],
    "symlink out, file through it": [
        member("door", tarfile.SYMTYPE, "../../outside"),
        member("door/secret.txt", content=b"x"),
    ],
    "absolute symlink": [member("door", tarfile.SYMTYPE, "/etc")],
    "hard link out": [member("door", tarfile.LNKTYPE, "../../outside/secret.txt")],
    "device": [member("null", tarfile.CHRTYPE)],
    "block device": [member("disk", tarfile.BLKTYPE)],
    "fifo": [member("pipe", tarfile.FIFOTYPE)],
}
HOSTILE = {
    **{name: ("toy.tar.gz", tar(FILES, extra=extra), "no plain") for name, extra in LINKS.items()},
    **{
        f"{kind} {name}": (f"toy.{kind}", pack({**FILES, name: b"x"}), "leads out")
        for kind, pack in (
            ("tar.gz", tar),
            ("tar.xz", lambda files: tar(files, "w:xz")),
        )
        for name in (
            "../outside/secret.txt",
            "train/../../outside/secret.txt",
            "/outside/secret.txt",
            "C:/outside/secret.txt",
            "..\\outside\\secret.txt",
        )
    },
    "bomb": ("toy.tar.gz", tar({"zeros": bytes(30_000_000)}), "grows past"),
    "xz bomb": ("toy.tar.xz", tar({"zeros": bytes(30_000_000)}, "w:xz"), "grows past"),
    "sparse bomb": ("toy.tar.gz", tar(FILES, extra=[SPARSE]), "grows past"),
    "header bomb": (
        "toy.tar.gz",
        tar(FILES, extra=[pax("x", comment="a" * 30_000_000)]),
        "grows past",
    ),
    "empty files": ("toy.tar.gz", tar({f"{n}": b"" for n in range(3000)}), "grows past"),
    "same name twice": ("toy.tar.gz", tar({**FILES, "./license.txt": b""}), "cannot be unpacked"),
    "file as folder": ("toy.tar.gz", tar({**FILES, "license.txt/x": b""}), "cannot be unpacked"),
    "cut short": ("toy.tar.gz", tar(FILES)[:-40_000], "cannot be unpacked"),
    "no archive": ("toy.tar.gz", b"x" * 20_000, "cannot be unpacked"),
    "no xz archive": ("toy.tar.xz", b"x" * 20_000, "cannot be unpacked"),
    "gzip of no tar": ("toy.tar.gz", gzip.compress(b"x" * 20_000), "cannot be unpacked"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_leave_nothing_behind(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Even with the published hash: the publisher may have been had."""
    name, content, why = HOSTILE[case]
    if case == "empty files":
        monkeypatch.setattr(download, "TAR_PADDING", 0)
    publish(content, name)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    out = tmp_path / "data"
    assert why in fails(out)
    assert left(out) == {name}  # no tree, whole or partial
    assert contents(outside) == {"secret.txt": b"secret"}
    assert {p.name for p in tmp_path.iterdir()} == {"data", "outside"}


def test_the_hostile_members_do_harm_where_they_are_believed(tmp_path: Path) -> None:
    """The archives above are what they claim: an unguarded reader makes the link and follows it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "data" / "toy").mkdir(parents=True)
    _, content, _ = HOSTILE["symlink out, file through it"]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for info in archive:
            if info.issym():
                (tmp_path / "data" / "toy" / info.name).symlink_to(info.linkname)
            elif info.isreg():
                place = tmp_path / "data" / "toy" / info.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.extractfile(info).read())
    assert (tmp_path / "outside" / "secret.txt").read_bytes() == b"x"
    _, content, _ = HOSTILE["sparse bomb"]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert archive.getmember("bomb").size == 10**12


def test_what_a_killed_run_left_is_removed(publish: Publish, tmp_path: Path) -> None:
    publish(tar(FILES))
    (tmp_path / ".toy.abcdef" / "train").mkdir(parents=True)
    assert contents(fetch(tmp_path)) == FILES
    assert left(tmp_path) == {"toy", "toy.tar.gz"}


def test_a_disk_that_fills_up_while_unpacking(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    publish(tar(FILES))
    monkeypatch.setattr(download.shutil, "copyfileobj", full)
    assert "No space left on device" in fails(tmp_path)
    assert left(tmp_path) == {"toy.tar.gz"}


# --- what is published


def test_addresses_agree_with_torchvision() -> None:
    from dskd_lite._torchvision import torchvision

    CIFAR10, DTD = torchvision.datasets.CIFAR10, torchvision.datasets.DTD
    assert DATASETS["cifar10"].url == CIFAR10.url
    assert CIFAR10.tgz_md5 in DATASETS["cifar10"].hash_origin
    assert DATASETS["cifar10"].folder == CIFAR10.base_folder
    assert DATASETS["dtd"].url == DTD._URL


def test_every_source_is_complete() -> None:
    assert {"mvtec", "dtd", "cifar10", "mvtec-screw"} <= DATASETS.keys()
    assert len(DATASETS) == 18 and len({s.sha256 for s in DATASETS.values()}) == 18
    for name, source in DATASETS.items():
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256), name
        assert source.url.startswith("https://") and source.page.startswith("https://")
        assert source.archive.endswith((".tar.gz", ".tar.xz"))
        assert "\n" not in source.notice() + source.by_hand(Path("data"))
        assert (" GB." in source.notice()) == (source.size is not None), name
    assert "all 15 categories, 5.26 GB." in DATASETS["mvtec"].notice()


def test_importing_costs_nothing() -> None:
    code = "import dskd_lite.datasets.download, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
