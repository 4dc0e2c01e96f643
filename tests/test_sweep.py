from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dskd_lite import experiment, sweep
from dskd_lite.cli import _parse, main
from dskd_lite.config import Config
from dskd_lite.errors import InputError
from dskd_lite.sweep import (
    RESULTS,
    Job,
    Sweep,
    add_result,
    checksum_inputs,
    jobs,
    portable,
    read_results,
    run_sweep,
    summary,
)

Make = Callable[..., Path]
FAST = "batch-size=4 fusion-epochs=1 smoothing-sigma=1 octaves=0,2"


def _options(root: Path, out: Path, **changes: object) -> Sweep:
    settings = {
        "data": (root,), "out": out, "teachers": ("offline=random",), "image_sizes": (32,),
        "seeds": (0, 1), "epochs": 1, "variants": (FAST,),
    }  # fmt: skip
    return Sweep(**settings | changes)


def _plan(options: Sweep) -> list[Job]:
    return list(jobs(options, lambda arguments: _parse("train", Config, arguments)))


def test_jobs_are_the_product_of_the_lists(make_category: Make, tmp_path: Path) -> None:
    make_category("data/a")
    make_category("data/b")
    options = _options(
        tmp_path / "data", tmp_path / "out", methods=("dskd", "rd4ad"), image_sizes=(32, 64),
        variants=("", "no-skip loss=flattened"), teachers=("offline=random", "resnet18"),
    )  # fmt: skip
    planned = _plan(options)
    assert len(planned) == len({job.key for job in planned}) == 2 * 2 * 2 * 2 * 2 * 2
    one = next(j for j in planned if j.key == "b_rd4ad_resnet18_64_e1_no-skip_loss=flattened_s1")
    assert (one.config.method, one.config.teacher, one.config.image_size) == (
        "rd4ad",
        "resnet18",
        64,
    )
    assert (one.config.skip, one.config.loss, one.config.seed) == (False, "flattened", 1)
    assert one.config.data == (tmp_path / "data" / "b").resolve()


def test_a_sweep_gives_what_single_runs_give_and_goes_on_where_it_stopped(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = make_category(), tmp_path / "sweep"
    (root / "train" / "good" / "notes.txt").touch()
    passed_over = f"{root.name}: passed over, being no images that are read here: "
    passed_over += str(root / "train" / "good" / "notes.txt")
    options = _options(root, out)
    planned = _plan(options)
    said: list[str] = []
    rows = run_sweep(planned, options, said.append)
    assert said[1] == passed_over and len(said) == 2 + 2  # once, and a line for each run
    assert [row["key"] for row in rows] == [job.key for job in planned]
    alone = experiment.run(planned[1].config.__class__(**vars(planned[1].config) | {
        "out": tmp_path / "alone"}))  # fmt: skip
    assert rows[1]["scores"] == alone["scores"]

    file = out / RESULTS
    other = json.dumps({"key": "of_another_sweep"}) + "\n"
    first = file.read_text().splitlines(keepends=True)[0]  # as if stopped after one run
    file.write_text(other + first)
    said.clear()
    again = run_sweep(planned, options, said.append)
    assert said == ["2 runs, 1 done before", passed_over, f"done: {planned[1].key} (2 of 2)"]
    assert other in file.read_text()
    assert [r["scores"] for r in again] == [r["scores"] for r in rows]
    monkeypatch.setattr("distributed.Client", lambda *a, **k: pytest.fail("nothing was left to do"))
    assert len(run_sweep(planned, options)) == 2


def test_variants_and_options_are_read_from_the_command_line(
    make_category: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_category(), tmp_path / "sweep"
    command = ["sweep", str(root), "--out", str(out), "--teachers", "offline=random", "--epochs",
               "1", "--image-sizes", "32", "--seeds", "0", "--precision", "bf16", "--variants",
               FAST, f"{FAST} no-skip"]  # fmt: skip
    assert main(command) == 0
    rows = read_results(out / RESULTS)
    assert [row["config"]["skip"] for row in rows] == [True, False]
    assert {row["config"]["precision"] for row in rows} == {"bf16"}
    assert rows[0]["config"]["octaves"] == [0, 2]
    assert rows[0]["hardware"]["threads"] == 1  # of the worker, whatever this process has

    assert main([*command, "--compile"]) == 0  # which changes no result: the runs are there
    command[command.index("bf16")] = "fp32"
    assert main(command) == 2
    assert "with precision bf16, not fp32" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["epochs=50", "image-size=64", "noise-on=masks/a"])
def test_a_variant_cannot_contradict_the_sweep(
    make_category: Make, tmp_path: Path, variant: str
) -> None:
    options = _options(make_category(), tmp_path / "sweep", variants=(variant,))
    with pytest.raises(InputError, match=f"variant '{variant}'"):
        _plan(options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workers": 0}, "--workers 0 and --threads 1 must be at least 1"),
        ({"threads": -1}, "--workers 1 and --threads -1 must be at least 1"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "no dask scheduler answers at tcp://127.0.0.1:1"),
        ({"scheduler": "nonsense://x"}, "no dask scheduler answers at nonsense://x"),
    ],
)
def test_a_sweep_without_workers_is_refused(
    make_category: Make, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    import dask
    import distributed  # noqa: F401  # its defaults come before what is set here

    options = _options(make_category(), tmp_path / "sweep", **changes)
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        with pytest.raises(InputError, match=re.escape(words)):
            run_sweep(_plan(options), options)


def test_without_dask_a_sweep_says_what_to_install(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dask", None)
    options = _options(make_category(), tmp_path / "sweep")
    with pytest.raises(InputError, match=r'pip install "dskd_lite\[sweep\]"'):
        run_sweep(_plan(options), options)


def test_a_worker_in_another_folder_finds_every_path(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = _options(
        make_category(), Path("sweep"), teachers=("resnet18=w.pth",), textures="dtd",
        seeds=(0,), variants=("", "noise-on=disc.png"),
    )  # fmt: skip
    plain, drawn = (job.config for job in _plan(options))
    assert plain.out.parent == tmp_path / "sweep" and plain.noise_on == "anywhere"
    assert plain.teacher_weights == str(tmp_path / "w.pth")
    assert plain.textures == str(tmp_path / "dtd")
    assert drawn.noise_on == str(tmp_path / "disc.png")


def test_a_job_that_fails_is_named_and_the_others_are_kept(
    make_category: Make, tmp_path: Path
) -> None:
    good, bad = make_category("good"), make_category("bad")
    options = _options(good, tmp_path / "sweep", data=(good, bad), seeds=(0,))
    planned = _plan(options)
    (bad / "train" / "good" / "000.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 runs failed.*bad_dskd.*000\.png cannot be read"):
        run_sweep(planned, options)
    assert [row["category"] for row in read_results(tmp_path / "sweep" / RESULTS)] == ["good"]
    shutil.copy(good / "test" / "hole" / "000.png", good / "test" / "hole" / "000.bmp")
    said: list[str] = []
    (row,) = run_sweep(planned[:1], options, said.append)  # what is done stays done
    assert row["category"] == "good" and "are both called 000" in said[0]


def test_a_killed_worker_costs_only_its_job(make_category: Make, tmp_path: Path) -> None:
    import psutil

    options = _options(make_category(), tmp_path / "sweep")
    killed: list[int] = []

    def kill_one_worker() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            time.sleep(0.2)
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # zombies too: others come and go
                    if "spawn_main" in " ".join(child.cmdline()) and child.cpu_times().user > 1.5:
                        child.kill()
                        killed.append(child.pid)
                        return

    killer = threading.Thread(target=kill_one_worker)
    killer.start()
    rows = run_sweep(_plan(options), options)
    killer.join()
    assert killed
    assert [row["key"][-2:] for row in rows] == ["s0", "s1"]


@pytest.mark.parametrize(("dies", "starts"), [("s2", [1, 1, 2, 1]), ("s0", [4, 1, 1, 1])])
def test_jobs_beside_a_dying_one_run_once(
    dies: str,
    starts: list[int],
    make_category: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seed 2 kills its worker once, after others are done; seed 0 does so whenever it runs."""
    log = tmp_path / "starts"

    def stub(job: Job, threads: int) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(f"{job.key[-2:]}\n")
        if job.key.endswith(dies) and (dies == "s0" or log.read_text().count("s2") == 1):
            while dies == "s2" and len(read_results(job.config.out.parent / RESULTS)) < 2:
                time.sleep(0.1)  # the client has not yet the results of those before
            time.sleep(1)
            os._exit(1)
        return {"key": job.key, "scores": {}}

    monkeypatch.setattr(sweep, "run_job", stub)
    options = _options(make_category(), tmp_path / "sweep", seeds=(0, 1, 2, 3))
    if dies == "s0":
        with pytest.raises(InputError, match=r"^1 runs failed.*_s0 \("):
            run_sweep(_plan(options), options)
    else:
        run_sweep(_plan(options), options)
    started = log.read_text().split()
    assert [started.count(f"s{seed}") for seed in range(4)] == starts
    done = [row["key"][-2:] for row in read_results(tmp_path / "sweep" / RESULTS)]
    assert sorted({*done, dies}) == ["s0", "s1", "s2", "s3"]
    assert (dies in done) == (dies == "s2")


def test_workers_may_keep_freed_memory(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask's own setting would have them give it back, and take it again, in every step."""

    def stub(job: Job, threads: int) -> dict[str, Any]:
        return {"key": job.key, "set": sorted(os.environ)}

    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setattr(sweep, "run_job", stub)
    options = _options(make_category(), tmp_path / "sweep", seeds=(0,))
    (row,) = run_sweep(_plan(options), options)
    assert "OMP_NUM_THREADS" in row["set"]  # so dask's other settings are there
    assert "MALLOC_TRIM_THRESHOLD_" not in row["set"]


def test_an_interrupted_sweep_leaves_no_worker(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_job", lambda job, threads: {"key": job.key})
    monkeypatch.setattr(sweep, "add_result", interrupted)
    options = _options(make_category(), tmp_path / "sweep", seeds=(0,))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(_plan(options), options)
    family = psutil.Process().children(recursive=True)
    assert not [child for child in family if "spawn_main" in " ".join(child.cmdline())]


def test_a_sweep_listens_on_this_machine_only(
    make_category: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask's pages ask for no password."""
    import psutil

    def stub(job: Job, threads: int) -> dict[str, Any]:
        family = [psutil.Process(), *psutil.Process().parents()]
        pids = [process.pid for process in family]
        found = []
        for process in family[: pids.index(int(os.environ["SWEEP_TEST_PID"])) + 1]:
            found += process.net_connections()
        places = {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}
        return {"key": job.key, "listening": sorted(places)}

    monkeypatch.setenv("SWEEP_TEST_PID", str(os.getpid()))
    monkeypatch.setattr(sweep, "run_job", stub)
    options = _options(make_category(), tmp_path / "sweep", seeds=(0,))
    (row,) = run_sweep(_plan(options), options)
    assert row["listening"] == ["127.0.0.1"]


def test_summary_is_mean_and_standard_deviation_over_seeds() -> None:
    values = {"image_auroc": [0.8, 0.9, 0.7], "pixel_auroc": [0.5, 0.5, 0.5]}
    rows = [
        {
            "key": f"screw_dskd_x_s{seed}",
            "category": "screw",
            "scores": {"fused": {m: v[seed] for m, v in values.items()} | {"aupro": None}},
        }
        for seed in range(3)
    ]
    (entry,) = summary(rows)
    assert (entry["setting"], entry["map"], entry["seeds"]) == ("screw_dskd_x", "fused", 3)
    assert entry["image_auroc"] == pytest.approx((80.0, 100 * statistics.stdev([0.8, 0.9, 0.7])))
    assert entry["pixel_auroc"] == pytest.approx((50.0, 0.0))
    assert entry["aupro"] is None


def test_damaged_results_are_named(tmp_path: Path) -> None:
    file = tmp_path / RESULTS
    for damage in (b"nonsense", b"\xff\xfe", b"5", b"{}"):
        file.write_bytes(b'{"key": "a"}\n' + damage + b'\n{"key": "b"}\n')
        with pytest.raises(InputError, match="damaged in line 2"):
            read_results(file)


def test_two_categories_of_one_name_are_refused(
    make_category: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make_category("x/part"), make_category("y/part")
    assert main(["sweep", str(first), str(second), "--out", str(tmp_path / "s")]) == 2
    assert "two runs of the sweep are called part_" in capsys.readouterr().err


def test_rows_hold_names_instead_of_paths() -> None:
    config = {"data": "/data/mvtec/screw", "textures": "procedural", "out": "/runs/x", "seed": 1,
              "teacher_weights": "/weights/resnet18.safetensors"}  # fmt: skip
    assert portable(config) == {
        "data": "screw", "textures": "procedural", "seed": 1,
        "teacher_weights": "resnet18.safetensors",
    }  # fmt: skip


def test_rows_of_another_process_stay(tmp_path: Path) -> None:
    file = tmp_path / RESULTS
    add_result(file, {"key": "a", "scores": 1})
    add_result(file, {"key": "b", "scores": 2})  # by a process that has read nothing
    rows = add_result(file, {"key": "a", "scores": 3})
    assert [row["scores"] for row in read_results(file)] == [3, 2]
    assert list(rows) == ["a", "b"]


def test_no_row_is_lost_between_reading_and_writing(tmp_path: Path) -> None:
    file = tmp_path / RESULTS
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add_result(file, {"key": str(n)}), range(40)))
    assert {row["key"] for row in read_results(file)} == {str(n) for n in range(40)}


def test_rows_of_other_images_are_refused(make_category: Make, tmp_path: Path) -> None:
    options = _options(make_category("x/part"), tmp_path / "sweep", seeds=(0,))
    run_sweep(_plan(options), options)
    (row,) = read_results(options.out / RESULTS)
    moved = options.data[0].rename(tmp_path / "part")  # the same images elsewhere are the same
    options = replace(options, data=(moved,))
    assert run_sweep(_plan(options), options) == [row]
    image = moved / "train" / "good" / "000.png"
    image.write_bytes(image.read_bytes()[:-1] + b"?")  # of the same length
    with pytest.raises(InputError, match=r"holds part_dskd.* of other images than"):
        run_sweep(_plan(options), options)


def test_rows_of_other_textures_are_refused(make_category: Make, tmp_path: Path) -> None:
    folder = make_category() / "train" / "good"
    for name in ("x", "y"):  # folders of one name
        shutil.copytree(folder, tmp_path / name / "textures")
    places = [str(tmp_path / name / "textures") for name in ("x", "y")]
    options = _options(make_category("part"), tmp_path / "sweep", seeds=(0,), textures=places[0])
    run_sweep(_plan(options), options)
    (row,) = read_results(options.out / RESULTS)
    options = replace(options, textures=places[1])
    assert run_sweep(_plan(options), options) == [row]  # their copies are the same textures
    (tmp_path / "y" / "textures" / "000.png").unlink()
    with pytest.raises(InputError, match=r"holds part_dskd.* with other files in textures than"):
        run_sweep(_plan(options), options)


def test_weights_and_masks_are_told_apart_by_their_contents(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"123456789")
    config = Config(tmp_path, teacher_weights=str(file), noise_on="object")
    sums = checksum_inputs(config, {})
    assert sums == {"teacher_weights": zlib.crc32(b"weights.pth123456789")}
    other = replace(config, teacher_weights="pretrained", noise_on=str(file))
    assert checksum_inputs(other, {}) == {"noise_on": sums["teacher_weights"]}
