"""Execute notebooks in place, each from a clean kernel, and leave no trace of the machine in them.

``python notebooks/execute.py`` runs all in their order, ``python notebooks/execute.py FILE ...``
those named. Images and trained detectors go to a course folder that is empty at the start and
shared by the notebooks of one call, as for a reader who starts at the first; ``--keep FOLDER``
names one to keep. A notebook that fails stays as it was, and the exit status is 1. Prints each
one's seconds and, on Linux, the most memory that its kernel held.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

HERE = Path(__file__).resolve().parent
CELL_TIMEOUT = 1800  # seconds: a busy machine may be ten times slower than a quiet one
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path) -> tuple[float, float]:
    """Run one notebook, write it back with its outputs; return its seconds and its peak in MiB."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(path.parent)}}, record_timing=False,
    )  # fmt: skip
    peak = 0.0

    def measure(**_: object) -> None:
        nonlocal peak
        peak = peak_memory(client.km.provisioner.pid)

    client.on_cell_executed = measure
    start = time.perf_counter()
    client.execute()
    seconds = time.perf_counter() - start
    clean(notebook)
    nbformat.write(notebook, path)
    return seconds, peak


def peak_memory(process: int) -> float:
    """The most memory that a process has held, in MiB; 0 where the system does not say."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Take out what depends on the machine and the moment; widget states stay."""
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    if widgets:
        notebook.metadata["widgets"] = widgets
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            joined = []
            for output in cell.outputs:  # a stream comes in as many pieces as it was flushed
                last = joined[-1] if joined else {}
                if output.output_type == "stream" == last.get("output_type") and (
                    output.name == last["name"]
                ):
                    last["text"] += output.text
                else:
                    joined.append(output)
            cell.outputs = joined


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="all, in their order, if not given")
    parser.add_argument("--keep", type=Path, help="course folder to use and keep")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as fresh:
        os.environ["DSKD_COURSE_DIR"] = str((arguments.keep or Path(fresh)).resolve())
        for path in arguments.notebooks or sorted(HERE.glob("[0-9]*.ipynb")):
            try:
                seconds, peak = execute(path.resolve())
                print(f"{path.name}: {seconds:.0f} s, {peak:.0f} MiB", flush=True)
            except (CellExecutionError, CellTimeoutError) as error:
                failed += 1
                print(f"{path.name} failed and is left as it was:\n{error}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
