"""The command `dskd`: train, evaluate, predict, export, sweep, novelty, data, info."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from dskd_lite import __version__
from dskd_lite.config import PRESETS, Config, Device, Precision, TeacherName
from dskd_lite.errors import InputError
from dskd_lite.novelty import Novelty
from dskd_lite.sweep import Sweep

if TYPE_CHECKING:  # torch comes in when a command runs, so that --help answers at once
    from tqdm import tqdm

    from dskd_lite.training import Step


@dataclass(frozen=True)
class Evaluate:
    """Options of `dskd evaluate`."""

    run: tyro.conf.Positional[Path]
    """Folder that `dskd train` wrote."""
    data: Path | None = None
    """Category to evaluate on; the one it was trained on if not given."""
    out: Path | None = None
    """Folder for report.json and report.html; RUN/evaluation if not given."""
    device: Device = "auto"
    """Auto takes a CUDA GPU if there is one; mps, of Macs, is not tested."""
    batch_size: int = 16
    """Images at a time."""
    precision: Precision = "fp32"
    """Of teacher and students; the stored threshold was fitted in fp32. Auto: bf16 or fp16 on a
    GPU."""


@dataclass(frozen=True)
class Predict:
    """Options of `dskd predict`."""

    run: tyro.conf.Positional[Path]
    """Folder that `dskd train` wrote."""
    source: tyro.conf.Positional[Path]
    """An image, or a folder of images."""
    out: Path = Path("predictions")
    """Folder for overlays, masks, scores.csv and report.html."""
    device: Device = "auto"
    """Auto takes a CUDA GPU if there is one; mps, of Macs, is not tested."""
    batch_size: int = 16
    """Images at a time."""
    precision: Precision = "fp32"
    """Of teacher and students; the stored threshold was fitted in fp32. Auto: bf16 or fp16 on a
    GPU."""


@dataclass(frozen=True)
class Export:
    """Options of `dskd export`."""

    run: tyro.conf.Positional[Path]
    """Folder that `dskd train` wrote."""
    out: Path = Path("model.onnx")
    """File to write."""


@dataclass(frozen=True)
class Data:
    """Options of `dskd data`."""

    name: tyro.conf.Positional[Literal["procedural", "mvtec", "dtd", "cifar10"]]
    """Procedural makes the embedded benchmark; the others are downloaded."""
    out: Path = Path("data")
    """Folder to put it in."""
    category: str | None = None
    """One category of mvtec instead of all fifteen, or of the benchmark instead of all five."""
    seed: int = 0
    """Of the procedural benchmark."""
    accept_licence: bool = False
    """Accept the licence of a downloaded set without being asked."""


@dataclass(frozen=True)
class Info:
    """Options of `dskd info`."""

    teacher: TeacherName = "wide_resnet50_2"
    """Backbone."""
    image_size: int = 256
    """Side in pixels."""
    json: bool = False
    """Print JSON."""


class Terminal:
    """Shows a run as lines and progress bars on the standard error stream."""

    def __init__(self) -> None:
        self._bars: list[tqdm[Any]] = []

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self._bars:  # an error message belongs on a line of its own
            bar.close()

    def say(self, line: str) -> None:
        """Print one line."""
        print(line, file=sys.stderr)

    def counter(self, title: str, total: int, unit: str = "img") -> Callable[[int], None]:
        """A bar that goes away when ``total`` images (or other units) are done."""
        bar = self._bar(title, total, unit, leave=False)

        def advance(count: int) -> None:
            bar.update(count)
            if bar.n >= total:
                bar.close()

        return advance

    def steps(self, title: str) -> Callable[[Step], None]:
        """A bar over training steps with the loss and images per second; it stays."""
        bar: tqdm[Any] | None = None

        def advance(step: Step) -> None:
            nonlocal bar
            if bar is None:
                bar = self._bar(title, step.images_in_all, "img", leave=True)
                # a resumed run starts in the middle, which is no merit of this minute's speed
                bar.initial = bar.n = step.images_in_all * (step.step - 1) // step.steps
            bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
            bar.update(step.images)
            if step.step == step.steps:
                bar.close()

        return advance

    def _bar(self, title: str, total: int, unit: str, leave: bool) -> tqdm[Any]:
        from tqdm import tqdm

        scale = unit == "B"
        bar = tqdm(total=total, desc=f"{title:<10}", unit=unit, unit_scale=scale, leave=leave)
        self._bars.append(bar)
        return bar


def train(config: Config) -> None:
    """Train students and fusion, evaluate, write model and report."""
    from accelerate import PartialState

    from dskd_lite import experiment, report

    with Terminal() as display:
        content = experiment.run(config, display)
    if not PartialState().is_main_process:  # one of several tells what all of them did
        return
    categories = content.get("categories", {})
    measured = sum(map(bool, categories.values()))
    if measured:
        print(report.category_table(categories))
        print(f"\nmean of {measured} categories:")
    if content["scores"]:
        print(report.table(content["scores"]))
    for note in (*content.get("notes", []), *report.verdict_lines(content.get("verdicts", {}))):
        print(note)
    page = config.out / experiment.PAGE
    print(f"report: {page if page.is_file() else config.out / experiment.REPORT}")
    if not categories:
        run = shlex.quote(str(config.out))
        print(f"to judge photos: dskd predict {run} PHOTOS --out predictions")


def evaluate(options: Evaluate) -> None:
    """Evaluate a trained model on a test set."""
    from dskd_lite import experiment, report

    out = options.out or options.run / "evaluation"
    with Terminal() as display:
        content = experiment.evaluate_run(
            options.run, options.data, out, options.device, options.batch_size, display,
            options.precision,
        )  # fmt: skip
    print(report.table(content["scores"]))
    for note in (*content["notes"], *report.verdict_lines(content.get("verdicts", {}))):
        print(note)
    print(f"report: {out / experiment.PAGE}")


def predict(options: Predict) -> None:
    """Score photos and draw where they look anomalous."""
    from dskd_lite import experiment, prediction
    from dskd_lite.datasets.folder import first_of
    from dskd_lite.evaluation import threshold_notes

    detector = experiment.load_run(options.run)
    device = experiment.prepare_detector(detector, options.device, options.precision)
    root, photos, others = prediction.find_photos(options.source, options.out)
    earlier = prediction.judged_before(options.out)
    with Terminal() as display:
        progress = display.counter("predict", len(photos))
        verdicts = prediction.predict(
            detector, options.source, options.out, options.batch_size, device, progress,
            experiment.photo_size(options.run),
        )  # fmt: skip
    for v in verdicts:
        score = "" if v.score is None else f"{v.score:.4g}"
        print(f"{v.verdict:<10} {score:>8}  {v.path}{': ' if v.note else ''}{v.note}")
    if others:
        print(f"passed over, being no photos that are read here: {first_of(others)}")
    if old := sorted(earlier - {v.path.relative_to(root).as_posix() for v in verdicts}):
        print(f"results of photos that were not judged now: {first_of(old)}")
    if detector.thresholds is not None:
        told = prediction.tally(verdicts)
        print(f"anomalous, above {detector.thresholds.image:.4g}: {told}")
    for note in threshold_notes(detector.thresholds):
        print(note)
    print(f"overlays, masks and {prediction.SCORES_FILE}: {options.out}")
    print(f"report: {options.out / prediction.PAGE}")


def export(options: Export) -> None:
    """Write a trained model as one ONNX file."""
    from dskd_lite import experiment
    from dskd_lite.evaluation import threshold_notes
    from dskd_lite.export import export_onnx

    detector = experiment.load_run(options.run)
    difference = export_onnx(detector, options.out)
    print(f"onnxruntime agrees with the detector to {difference:.0e} of the largest value")
    for note in threshold_notes(detector.thresholds):
        print(note)
    print(f"model: {options.out}")


def data(options: Data) -> None:
    """Make the embedded benchmark, or download a public data set."""
    if options.name == "procedural":
        from dskd_lite.datasets.procedural import write_benchmark

        write_benchmark(options.out, options.seed, [options.category] if options.category else None)
        print(f"benchmark: {options.out}")
        return
    from dskd_lite.datasets.download import DATASETS, download_dataset

    accepted = options.accept_licence
    name = options.name + (f"-{options.category}" if options.category else "")
    if name not in DATASETS:
        raise InputError(f"{options.name} has no category {options.category!r}")
    print(DATASETS[name].notice())
    if not accepted and sys.stdin.isatty():
        accepted = input("Accept these terms? [y/N] ").strip().lower() in ("y", "yes")
    stages: dict[str, tuple[Callable[[int], None], int]] = {}

    with Terminal() as display:

        def progress(stage: str, done: int, total: int) -> None:
            advance, before = stages.get(stage) or (display.counter(stage, total, "B"), 0)
            advance(done - before)
            stages[stage] = advance, done

        folder = download_dataset(name, options.out, accepted, progress=progress)
    print(f"{name}: {folder}")


def info(options: Info) -> None:
    """Count parameters and multiply–adds."""
    from dskd_lite.cost import count_cost

    cost = count_cost(options.teacher, options.image_size)
    if options.json:
        content = {"teacher": options.teacher, "image_size": options.image_size, "parts": cost}
        print(json.dumps(content, indent=2))
        return
    print(f"{'':<18}{'parameters':>14}{'GMAC per image':>18}")
    for part, count in cost.items():
        gmac = count["multiply_adds"] / 1e9
        print(f"{part:<18}{count['parameters']:>14,}{gmac:>18.3f}")


def sweep(options: Sweep) -> None:
    """Train many runs and tabulate mean and spread over seeds."""
    from dskd_lite import sweep as sweeps

    if not options.data:
        raise InputError("name a category in MVTec layout to sweep over, or a folder of several")
    planned = list(sweeps.jobs(options, lambda arguments: _parse("train", Config, arguments)))
    with Terminal() as display:
        rows = sweeps.run_sweep(planned, options, display.say)
    print(sweeps.text_table(sweeps.summary(rows)))
    if without := sorted({row["category"] for row in rows if not row["scores"]}):
        print(f"no figures of {', '.join(without)}: no test images")
    print(f"results: {options.out / sweeps.RESULTS}")


def novelty(options: Novelty) -> None:
    """Take each class of a set as normal in turn, and tell the others from it."""
    from dskd_lite import novelty as one_class

    with Terminal() as display:
        rows = one_class.run_novelty(options, display)
    print(one_class.table(rows))
    print(f"results: {options.out / one_class.RESULTS}")


_GOES_ON = {
    "train": "; the same command with --resume goes on",
    "sweep": "; the same command goes on where it stopped",
    "novelty": "; the same command goes on with the classes that are not done",
}
COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "train": (Config, train),
    "evaluate": (Evaluate, evaluate),
    "predict": (Predict, predict),
    "export": (Export, export),
    "sweep": (Sweep, sweep),
    "novelty": (Novelty, novelty),
    "data": (Data, data),
    "info": (Info, info),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold bytes that are no text; print would stop at them.
        sys.stdout.reconfigure(errors="backslashreplace")
    if arguments in (["--version"], ["-V"]):
        print(__version__)
        return 0
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview())
            return 0
        name, rest = arguments[0], arguments[1:]
        if name not in COMMANDS:
            raise InputError(f"no command is called {name!r}: choose one of {', '.join(COMMANDS)}")
        options_class, command = COMMANDS[name]
        command(_parse(name, options_class, rest))
        sys.stdout.flush()
    except BrokenPipeError:  # who read, as `head` does, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InputError as error:
        print(f"dskd: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # torch's own is a RuntimeError; torch itself is not imported for `dskd --help`.
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise
        print("dskd: out of memory: lower --batch-size or --image-size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"dskd: interrupted{_GOES_ON.get(arguments[0], '')}", file=sys.stderr)
        return 130
    return 0


def _parse(name: str, options_class: type, arguments: list[str]) -> Any:
    preset: dict[str, Any] = {}
    if options_class is Config:
        arguments, preset = _take_preset(arguments)
    options, unknown = tyro.cli(
        options_class,
        prog=f"dskd {name}",
        args=arguments,
        **({"default": Config(data=tyro.MISSING, **preset)} if preset else {}),
        description=_description(name),
        return_unknown_args=True,
    )
    if unknown:
        raise InputError(f"unknown option {unknown[0]}: see `dskd {name} --help`")
    return options


def _take_preset(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """A preset changes the other options' defaults, so it is read before them."""
    for index, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option == "--preset":
            rest = arguments[:index] + arguments[index + (1 if value else 2) :]
            value = value or (arguments[index + 1 : index + 2] or [""])[0]
            if value not in PRESETS:
                raise InputError(f"--preset {value!r}: choose one of {', '.join(PRESETS)}")
            return rest, PRESETS[value]
    return arguments, {}


def _description(name: str) -> str:
    text = COMMANDS[name][1].__doc__ or ""
    if name == "train":
        lines = [f"{p}: {', '.join(f'{k} {v}' for k, v in o.items())}" for p, o in PRESETS.items()]
        text += " --preset NAME gives other defaults. " + "; ".join(lines) + "."
    return text


def _overview() -> str:
    lines = [f"  {name:<10}{command.__doc__}" for name, (_, command) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dskd COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "`dskd COMMAND --help` lists its options.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
