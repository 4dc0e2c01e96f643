"""Many runs in one go: categories x methods x teachers x sizes x seeds, into one tidy file."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import tyro

from dskd_lite.config import Config, Device, Method, Precision
from dskd_lite.errors import InputError
from dskd_lite.storage import locked, whole_file

RESULTS = "results.jsonl"
_WORDS = ("procedural", "pretrained", "random", "anywhere", "object")  # of options, not paths
_SET_BY_SWEEP = ("data", "method", "teacher", "teacher_weights", "image_size", "seed", "epochs",
                 "textures", "precision", "out", "mixed_sizes", "resume", "device",
                 "compile")  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """Options of `dskd sweep`."""

    data: tyro.conf.Positional[tuple[Path, ...]]
    """Categories in MVTec layout, or folders of several."""
    out: Path = Path("runs/sweep")
    """Folder for results.jsonl and the runs; one that holds results goes on where it stopped."""
    methods: tuple[Method, ...] = ("dskd",)
    """What to train."""
    teachers: tuple[str, ...] = ("wide_resnet50_2",)
    """Backbones, each NAME or NAME=WEIGHTS (pretrained, random or a file)."""
    image_sizes: tuple[int, ...] = (256,)
    """Sides in pixels."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    variants: tuple[str, ...] = ("",)
    """Further options of `dskd train` for each variant, without their dashes: "" no-skip
    "no-skip no-attention" loss=flattened octaves=0,3."""
    epochs: int = 200
    """Passes over the normal images that train the students."""
    textures: str = "procedural"
    """External source of synthetic noise."""
    precision: Precision = "auto"
    """Auto: bf16 or fp16 on a GPU, fp32 on a CPU."""
    device: Device = "auto"
    """Auto takes a CUDA GPU if there is one; several workers share it. Mps is not tested."""
    compile: bool = False
    """Compile the students' blocks: slow in the first run on a machine, quick in later ones."""
    scheduler: str | None = None
    """Address of a dask scheduler; a cluster on this machine if not given."""
    workers: int = 1
    """Workers of the cluster on this machine."""
    threads: int = 1
    """Threads that each of them computes with."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    key: str
    """Names the run in the results file and its folder."""
    config: Config


def jobs(options: Sweep, parse: Callable[[list[str]], Config]) -> Iterator[Job]:
    """Every run that the options name; ``parse`` turns arguments of `dskd train` into a Config.

    Raises InputError if a folder holds no category, or two runs would have one name.
    """
    from dskd_lite.datasets.folder import find_categories

    categories = [
        Path(os.path.abspath(root)) for folder in options.data for root in find_categories(folder)
    ]
    names: set[str] = set()
    for root, method, teacher, size, seed, variant in itertools.product(
        categories, options.methods, options.teachers, options.image_sizes, options.seeds,
        options.variants,
    ):  # fmt: skip
        name, _, weights = teacher.partition("=")
        base = parse([str(root), "--teacher", name, *_arguments(variant)])
        label = name + (f"-{Path(weights).stem}" if weights else "")
        parts = [root.name, method, label, size, f"e{options.epochs}", *variant.split(), f"s{seed}"]
        key = "_".join(str(part) for part in parts)
        if key in names:
            raise InputError(
                f"two runs of the sweep are called {key}: rename one of the folders, or "
                "name each option once"
            )
        names.add(key)
        yield Job(
            key,
            replace(
                base,
                method=method,
                teacher_weights=_absolute(weights or "pretrained"),
                image_size=size,
                seed=seed,
                epochs=options.epochs,
                textures=_absolute(options.textures),
                noise_on=_absolute(base.noise_on),
                precision=options.precision,
                out=Path(os.path.abspath(options.out)) / key,
                mixed_sizes=True,
                resume=True,
                device=options.device,
                compile=options.compile,
            ),
        )


def _absolute(place: str) -> str:
    """A path from the root, as a worker on the same disk may stand in another folder."""
    return place if place in _WORDS else os.path.abspath(place)


def _arguments(variant: str) -> list[str]:
    """``no-skip octaves=0,3`` as `dskd train` reads it: --no-skip --octaves 0 3.

    Raises InputError for an option that the sweep sets, or a path, which would stand in the key.
    """
    arguments = []
    for word in variant.split():
        name, _, values = word.partition("=")
        if name.replace("-", "_") in _SET_BY_SWEEP or "/" in values or "\\" in values:
            raise InputError(
                f"variant {word!r}: a variant names no path, and none of the options that the "
                f"sweep sets itself ({', '.join(_SET_BY_SWEEP)})"
            )
        arguments += [f"--{name}", *(values.split(",") if values else ())]
    return arguments


def read_results(file: Path) -> list[dict[str, Any]]:
    """Rows of a results file, one a run; empty if there is none.

    Raises InputError if a line is damaged.
    """
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "key" not in row:
            raise InputError(f"{file} is damaged in line {number}: delete that line")
        rows.append(row)
    return rows


def run_sweep(
    planned: Sequence[Job], options: Sweep, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """Run what the results file lacks, on dask.distributed; returns all rows of the planned jobs.

    A job whose worker dies is tried again from its checkpoint, up to three times (dask's
    ``allowed-failures``); one that fails is named and does not stop the others. Raises InputError
    if the options ask for no worker, dask is not installed or no scheduler answers, if the results
    file cannot be written, or if jobs failed, once the others are done.
    """
    if options.workers < 1 or options.threads < 1:
        raise InputError(
            f"--workers {options.workers} and --threads {options.threads} must be at least 1"
        )
    file = options.out / RESULTS
    rows = {row["key"]: row for row in read_results(file)}
    _check_done([job for job in planned if job.key in rows], rows, file, say)
    waiting = [job for job in planned if job.key not in rows]
    say(f"{len(planned)} runs, {len(planned) - len(waiting)} done before")
    _say_notes(waiting, say)
    failed: list[str] = []
    with closing(_results(waiting, options)) as results:  # and with it the cluster, at an error
        for job, result in results:
            if isinstance(result, BaseException):
                failed.append(f"{job.key} ({result})")
                say(f"failed: {failed[-1]}")
                continue
            rows |= add_result(file, result)
            done = sum(job.key in rows for job in planned)  # rows of other sweeps may lie there
            say(f"done: {job.key} ({done} of {len(planned)})")
    if failed:
        raise InputError(
            f"{len(failed)} runs failed, the others are in {file}: {'; '.join(failed)}"
        )
    return [rows[job.key] for job in planned]


def _check_done(
    done: Sequence[Job], rows: dict[str, dict[str, Any]], file: Path, say: Callable[[str], None]
) -> None:
    """Raise InputError if a row of the results file is not of the job that bears its name."""
    from dskd_lite.datasets.folder import scan_category

    checksums: dict[Path, int | None] = {}
    known: dict[str, int] = {}
    for job in done:
        root = job.config.data
        if root not in checksums:
            try:
                checksums[root] = scan_category(root).checksum
            except InputError as error:  # finished runs stay finished
                checksums[root] = None
                say(f"{root.name}: {error}; rows that are done are not compared with it")
        inputs = checksum_inputs(job.config, known)
        check_same_run(job, rows[job.key], checksums[root], inputs, file)


def _say_notes(waiting: Sequence[Job], say: Callable[[str], None]) -> None:
    """Say, once a category, which of its files are passed over."""
    from dskd_lite.datasets.folder import notes_on_files, scan_category

    for root in dict.fromkeys(job.config.data for job in waiting):
        with suppress(InputError):  # the job will say it, and the others go on
            category = scan_category(root)
            for note in notes_on_files(category, category.train):
                say(f"{root.name}: {note}")


def _results(
    waiting: Sequence[Job], options: Sweep
) -> Generator[tuple[Job, dict[str, Any] | BaseException], None, None]:
    """Each job as it ends, with its row or what it failed of; InputError as from `_client`."""
    if not waiting:
        return
    with _client(options) as client:
        from dask.base import tokenize
        from distributed import as_completed

        futures = {
            # The key must not be another sweep's on the same scheduler: that gives its result.
            client.submit(run_job, job, options.threads, key=f"{job.key}-{tokenize(str(job))}"): job
            for job in waiting
        }
        for future in as_completed(list(futures)):
            job = futures.pop(future)
            result = future.result() if future.status == "finished" else future.exception()
            # A result that is still asked for is computed again if its worker dies later.
            future.release()
            yield job, result


@contextmanager
def _client(options: Sweep) -> Iterator[Any]:
    """A client of the scheduler that the options name, or of a cluster on this machine.

    Leaves no worker behind, however it ends. Raises InputError if dask is not installed or the
    scheduler does not answer.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InputError('sweep needs dask: pip install "dskd_lite[sweep]"') from error

    _silence_dask()
    settings = {
        # A job that waits in a worker behind another would share blame for its death.
        "distributed.scheduler.worker-saturation": 1.0,
        # Dask has workers give freed memory back at once. Training on a CPU frees and takes
        # the same gigabytes in every step: almost half of it would go into that.
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    }
    with ExitStack() as stack:
        address: Any = options.scheduler
        if not address:
            with dask.config.set(settings):
                cluster = LocalCluster(
                    n_workers=options.workers,
                    threads_per_worker=1,
                    dashboard_address="127.0.0.1:0",  # not to the whole network
                )
            address = stack.enter_context(cluster)
        try:
            client = stack.enter_context(Client(address))
        except (OSError, ValueError) as error:
            raise InputError(
                f"no dask scheduler answers at {options.scheduler} ({error}): give --scheduler "
                "an address such as tcp://host:8786, or leave it out"
            ) from error
        yield client


def _silence_dask() -> None:
    """Its log would bury, after Ctrl-C, the line that says how to go on; failures are told here."""
    import distributed  # sets up its log as it is imported

    logging.getLogger(distributed.__name__).setLevel(logging.CRITICAL)


def run_job(job: Job, threads: int) -> dict[str, Any]:
    """Run one job; returns its row: the report, flattened no further than its own keys."""
    import torch

    from dskd_lite import experiment
    from dskd_lite.datasets.folder import scan_category

    _silence_dask()  # in the worker's process
    torch.set_num_threads(threads)
    checksum = scan_category(job.config.data).checksum
    inputs = checksum_inputs(job.config, {})
    report = experiment.run(job.config)
    names = (
        "scores", "verdicts", "images", "fusion_weights", "thresholds", "seconds", "versions",
        "hardware",
    )  # fmt: skip
    row = {"key": job.key, "category": job.config.data.name}
    row |= {"checksum": checksum, "inputs": inputs}
    return row | {name: report[name] for name in names} | {"config": portable(report["config"])}


def checksum_inputs(config: Config, known: dict[str, int]) -> dict[str, int]:
    """CRC-32 of textures, weights and regions, as far as they are files; ``known`` are read before.

    Raises InputError if a file cannot be read.
    """
    from dskd_lite.datasets.folder import checksum, files_below

    sums = {}
    for option in ("textures", "teacher_weights", "noise_on"):
        place = getattr(config, option)
        path = Path(place)
        if place in _WORDS or not path.exists():  # training says what is missing
            continue
        if place not in known:
            known[place] = (
                checksum(files_below(path), path)
                if path.is_dir()
                else checksum([path], path.parent)
            )
        sums[option] = known[place]
    return sums


def check_same_run(
    job: Job, row: dict[str, Any], checksum: int | None, inputs: dict[str, int], file: Path
) -> None:
    """Raise InputError if a row of the results file comes of other options, images or other files.

    ``checksum`` is that of the job's images, None if they cannot be read; ``inputs`` are those of
    ``checksum_inputs``. Rows that are older than checksums are not compared. An option that is
    younger than the row had its default.
    """
    remedy = f"another --out, or delete that line, and {file.parent / job.key} if it is there"
    if checksum is not None and row.get("checksum", checksum) != checksum:
        raise InputError(
            f"{file} holds {job.key} of other images than {job.config.data} has now: give {remedy}"
        )
    for option, value in inputs.items():
        if row.get("inputs", {}).get(option, value) != value:
            raise InputError(
                f"{file} holds {job.key} with other files in {option} than "
                f"{getattr(job.config, option)} has now: give {remedy}"
            )
    defaults = {field.name: field.default for field in fields(job.config)}
    planned, defaults = (
        json.loads(json.dumps(values, default=str))
        for values in (portable(asdict(job.config)), defaults)
    )
    for name, value in planned.items():
        stored = row.get("config", {}).get(name, defaults[name])
        if name not in ("device", "resume", "compile") and stored != value:
            raise InputError(
                f"{file} holds {job.key} with {name} {stored}, not {value}: give the same options, "
                f"{remedy}, whose checkpoint would bring the old options back"
            )


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """The options with names in place of paths, so that a results file may leave its machine."""
    paths = ("data", "textures", "teacher_weights", "noise_on")
    return {
        name: Path(value).name if name in paths else value
        for name, value in config.items()
        if name != "out"
    }


def add_result(file: Path, row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Add a row to a results file, which is written whole or not at all; returns all by their key.

    The file is read again first, and locked meanwhile: another process may add rows of its own.
    Raises InputError if it cannot be written.
    """
    with locked(file):
        rows = {known["key"]: known for known in read_results(file)} | {row["key"]: row}
        with whole_file(file) as temporary:
            lines = (json.dumps(known) + "\n" for known in rows.values())
            temporary.write_text("".join(lines), encoding="utf-8")
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds: one row for each setting and map, in percent.

    Rows hold ``category``, ``setting`` (the key without its seed), ``map``, ``seeds`` and, for each
    metric, a pair (mean, standard deviation with n - 1; 0 for one seed) or None.
    """
    import statistics

    groups: dict[tuple[str, str, str], list[dict[str, float | None]]] = {}
    for row in rows:
        setting = row["key"].rsplit("_s", 1)[0]
        for name, scores in row["scores"].items():
            groups.setdefault((row["category"], setting, name), []).append(scores)
    table = []
    for (category, setting, name), scores in groups.items():
        entry: dict[str, Any] = {
            "category": category, "setting": setting, "map": name, "seeds": len(scores),
        }  # fmt: skip
        for metric in scores[0]:
            values = [100 * s[metric] for s in scores if s[metric] is not None]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            entry[metric] = (statistics.mean(values), spread) if values else None
        table.append(entry)
    return table


def text_table(table: Sequence[dict[str, Any]]) -> str:
    """The summary as a Markdown table."""
    metrics = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}
    head = ["setting", "map", "seeds", *metrics.values()]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in table:
        cells = ["–" if row[m] is None else f"{row[m][0]:.1f} ± {row[m][1]:.1f}" for m in metrics]
        lines.append(" | ".join([row["setting"], row["map"], str(row["seeds"]), *cells]))
    return "\n".join(f"| {line} |" for line in lines)
