"""anomalib in an environment of its own, which a benchmark talks to line by line.

It is nobody's dependency: the environment is made in a temporary folder and thrown away. It sees
the packages of this one, so that both sides compute with the same torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Rival:
    """A program that answers each line on its input with one on its output."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.version = process.stdout.readline().strip()

    def ask(self) -> str:
        """Let it work once; returns its answer. Raises RuntimeError if it has died."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("anomalib's side has stopped; its error stands above")
        return answer


@contextmanager
def anomalib(program: str, *arguments: str) -> Iterator[Rival]:
    """Install anomalib and run ``program`` beside it, which prints its version first."""
    with tempfile.TemporaryDirectory() as folder:
        python = _install(Path(folder))
        with subprocess.Popen(
            [python, "-W", "ignore", "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            yield Rival(process)
            process.stdin.close()


def _install(folder: Path) -> Path:
    print("Installing anomalib into a temporary environment …", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.check_output(ask, text=True).strip())
    repository = Path(__file__).resolve().parent.parent
    (packages / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n{repository}\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "anomalib"], check=True)
    return python
