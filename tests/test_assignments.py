"""Graded assignments: the students' version is up to date, hidden tests catch mistakes, grading."""

from __future__ import annotations

import copy
import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from nbgrader.api import Gradebook

ASSIGNMENTS = Path(__file__).resolve().parents[1] / "notebooks" / "assignments"
NAMES = sorted(path.name for path in (ASSIGNMENTS / "source").iterdir() if path.is_dir())


def notebook(step: str, name: str, root: Path = ASSIGNMENTS) -> nbformat.NotebookNode:
    return nbformat.read(root / step / name / f"{name}.ipynb", as_version=4)


def points(cell: nbformat.NotebookNode) -> int:
    return cell.metadata.get("nbgrader", {}).get("points", 0)


@pytest.fixture
def course_folder(tmp_path: Path) -> Path:
    """A course of its own: the grading command, nbgrader's settings, no assignments."""
    root = tmp_path / "course"
    root.mkdir()
    shutil.copy(ASSIGNMENTS / "grade.py", root)
    settings = (ASSIGNMENTS / "nbgrader_config.py").read_text(encoding="utf-8")
    short, changed = re.subn(r"timeout = \d+", "timeout = 12", settings)
    assert changed == 1
    (root / "nbgrader_config.py").write_text(short, encoding="utf-8")
    return root


def nbgrader(root: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "nbgrader", *arguments]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for alembic
    run = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", NAMES)
def test_what_students_get_is_made_from_the_source(name: str, course_folder: Path) -> None:
    shutil.copytree(ASSIGNMENTS / "source", course_folder / "source")
    nbgrader(course_folder, "generate_assignment", name, "--create")
    assert notebook("release", name) == notebook("release", name, course_folder), (
        f"out of date; in {ASSIGNMENTS}: nbgrader generate_assignment {name} --create --force"
    )


@pytest.mark.parametrize("name", NAMES)
def test_students_get_neither_answers_nor_hidden_tests(name: str) -> None:
    text = (ASSIGNMENTS / "release" / name / f"{name}.ipynb").read_text(encoding="utf-8")
    assert "SOLUTION" not in text and "HIDDEN" not in text and "looked for" not in text
    for cell in notebook("release", name).cells:
        marks = cell.metadata.get("nbgrader", {})
        if marks.get("solution"):
            open_yet = "NotImplementedError" if cell.cell_type == "code" else "YOUR ANSWER HERE"
            assert open_yet in cell.source
        assert not cell.get("outputs")


@pytest.mark.parametrize("name", NAMES)
def test_assignments_are_committed_with_what_their_answers_give(name: str) -> None:
    code = [cell for cell in notebook("source", name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {(o.output_type, o.get("name")) for cell in code for o in cell.outputs}
    assert kinds <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}


@pytest.mark.parametrize("name", NAMES)
def test_points_and_first_lines_are_as_the_text_says(name: str) -> None:
    cells = notebook("source", name).cells
    total = sum(map(points, cells))
    counted = sum(points(cell) for cell in cells if cell.cell_type == "code")
    assert f"**Points:** {total}, of which {counted} are counted by the tests" in cells[0].source
    lines = [cell.source.partition("\n")[0] for cell in cells if "nbgrader" in cell.metadata]
    assert len(set(lines)) == len(lines)
    for cell in filter(points, cells):
        assert re.search(rf"\({points(cell)} (more )?points\)", cell.source.partition("\n")[0])
    for cell in cells:
        if cell.cell_type == "code":
            assert max(map(len, cell.source.splitlines())) <= 88, cell.source


# What students get wrong: (assignment, first line of the solution, right, wrong)
MISTAKES = [
    ("measuring", "# Task 1", "stats.rankdata(scores)",
     "scores.argsort().argsort() + 1"),
    ("measuring", "# Task 1", "if not defective or not good:", "if not defective:"),
    ("measuring", "# Task 2", "good | (defects == name)", "defects != name"),
    ("measuring", "# Task 3", "greater / len(ordered) <= rate",
     "greater <= rate * len(ordered)"),
    ("measuring", "# Task 3", "<= rate", "< rate"),
    ("measuring", "# Task 4", ", np.ones((3, 3))", ""),
    ("measuring", "# Task 4", "> threshold", ">= threshold"),
    ("measuring", "# Task 4", ">= 0.5", "> 0.5"),
    ("measuring", "# Task 4", "(sizes < high)", "(sizes <= high)"),
    ("measuring", "# Task 5", "recall * (1 - precision)", "recall"),
    ("measuring", "# Task 6", "threshold_at(held_out[name], 0.01)",
     "threshold_at(own, 0.01)"),
    ("measuring", "# Task 6", "own.max((1, 2))", "own.mean((1, 2))"),
    ("measuring", "# Task 6", "[1, 30, 100, 5000]", "[1, 50, 100, 5000]"),
    ("students", "# Task 1", "copy.deepcopy(network)", "network"),
    ("students", "# Task 1", "torch.equal(a, b) for", "True for"),
    ("students", "# Task 1", "torch.equal(value, moved[name]) for", "True for"),
    ("students", "# Task 1", "dict([*n.named_parameters(), *n.named_buffers()])",
     "n.state_dict()"),
    ("students", "# Task 2", "weight = F.adaptive_avg_pool2d",
     "weight = F.adaptive_max_pool2d"),
    ("students", "# Task 2", ".clamp_min(1e-12)", ""),
    ("students", "# Task 2", "(weight * distance).sum() / weight.sum()",
     "((weight * distance).sum((1, 2)) / weight.sum((1, 2))).mean()"),
    ("students", "# Task 3", "gate.mean((2, 3))", "skip.mean((2, 3))"),
    ("students", "# Task 3", "gate.mean((2, 3))", "gate.amax((2, 3))"),
    ("students", "# Task 4", "    torch.set_rng_state(state[\"random\"])\n", ""),
    ("students", "# Task 4", "    adam.load_state_dict(state[\"adam\"])\n", ""),
    ("students", "# Task 4", "beside = Path(f\"{path}.new\")", "beside = path"),
    ("students", "# Task 4", "os.replace(beside, path)",
     "path.write_bytes(beside.read_bytes())"),
    ("students", "# Task 4", "beside = Path(f\"{path}.new\")",
     "beside = Path(f\"/tmp/{path.name}.new\")"),
    ("students", "# Task 5", "    student.train()\n", ""),
    ("students", "# Task 5", "torch.randperm(len(images))", "torch.arange(len(images))"),
    ("students", "# Task 5", "lr=0.005", "lr=0.001"),
    ("students", "# Task 5", "    student.eval()\n", ""),
    ("students", "# Task 5", "betas=(0.5, 0.999)", "betas=(0.9, 0.999)"),
    ("students", "# Task 5", "optim.Adam(", "optim.AdamW("),
    ("students", "# Task 5", "sum(losses) / len(losses)", "losses[-1]"),
    ("detector", "# Task 1", "        self.fits = []\n",
     "        self.fits = getattr(self, 'fits', [])\n"),
    ("detector", "# Task 1", "away.clip(0) / x.shape[2]", "away.clip(0) / images.sum()"),
    ("detector", "# Task 2", "detector.fit(normal[fitted])", "detector.fit(normal)"),
    ("detector", "# Task 2", "scores = detector.maps(normal[held_out])",
     "scores = detector.maps(normal[fitted])"),
    ("detector", "# Task 2", "> threshold", ">= threshold"),
    ("detector", "# Task 3", "[False, True]", "[True, False]"),
    ("detector", "# Task 3", ".max((1, 2))", ".mean((1, 2))"),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_tests_catch_what_students_get_wrong(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each mistake in its place, in a notebook that is right otherwise, a test fails."""
    monkeypatch.setenv("DSKD_COURSE_DIR", str(tmp_path))
    code = [cell.source for cell in notebook("source", name).cells if cell.cell_type == "code"]
    space: dict[str, object] = {}

    def is_test(source: str, of: str = "") -> bool:
        return source.startswith(f"# Tests of {of}")

    exec(re.sub(r"^ *%.*", "    pass", code[0], flags=re.MULTILINE), space)
    tried = 0
    last = max(k for k, source in enumerate(code) if is_test(source))
    for place, source in enumerate(code[1 : last + 1], start=1):
        exec(source, space)
        line = source.partition("\n")[0]
        for _, _, right, wrong in [m for m in MISTAKES if m[:2] == (name, line)]:
            assert right in source, right
            task = f"{line[2:].lower()} ("  # "task 1 (", not task 10
            end = max(k for k, other in enumerate(code) if is_test(other, of=task))
            try:
                for cell in [source.replace(right, wrong), *code[place + 1 : end + 1]]:
                    exec(cell, space)
            except (SyntaxError, NameError):  # then the mistake is not one that runs
                raise
            except Exception:
                tried += 1
                exec(source, space)
                continue
            pytest.fail(f"{name}, {line}: nothing notices {wrong!r} in place of {right!r}")
    assert tried == sum(m[0] == name for m in MISTAKES)


def tiny_assignment(root: Path) -> nbformat.NotebookNode:
    """An assignment of one task with a hidden test, and a question; returns what students get."""

    def graded(cell: nbformat.NotebookNode, **marks: object) -> nbformat.NotebookNode:
        plain = {"grade": False, "locked": False, "solution": False, "task": False}
        cell.metadata["nbgrader"] = {"schema_version": 3, **plain, **marks}
        return cell

    solution = "# Task 1\n### BEGIN SOLUTION\ndef twice(x):\n    return 2 * x\n### END SOLUTION"
    tests = (
        "# Tests of task 1 (3 points)\nassert twice(1) == 2\n"
        "### BEGIN HIDDEN TESTS\nassert twice(2) == 4\n### END HIDDEN TESTS"
    )
    answer = "**Answer** (2 points)\n\n### BEGIN SOLUTION\nIt depends.\n### END SOLUTION"
    cells = [
        new_markdown_cell("# Tiny"),
        graded(new_code_cell(solution), grade_id="twice", solution=True),
        graded(new_code_cell(tests), grade_id="tests", grade=True, locked=True, points=3),
        graded(new_markdown_cell(answer), grade_id="answer", grade=True, solution=True, points=2),
    ]
    folder = root / "source" / "tiny"
    folder.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), folder / "tiny.ipynb")
    nbgrader(root, "generate_assignment", "tiny", "--create")
    return notebook("release", "tiny", root)


class Class:
    """A class that hands in the tiny assignment, and the command that grades it."""

    def __init__(self, root: Path, hand_ins: Path) -> None:
        self.root, self.hand_ins = root, hand_ins
        self.released = tiny_assignment(root)
        hand_ins.mkdir()

    def hand_in(self, student: str, task: str, *more: str, bare: bool = False) -> None:
        cells = copy.deepcopy(self.released.cells)
        cells[1].source = task
        cells[3].source += "\n\nSurely."
        if bare:  # an editor that keeps no metadata, and a student who threw the tests away
            del cells[2]
            for cell in cells:
                cell.metadata = nbformat.NotebookNode()
        cells[1:1] = [new_code_cell(source) for source in more]
        nbformat.write(new_notebook(cells=cells), self.hand_ins / f"{student}.ipynb")

    def grade(self) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, str]]]:
        command = [sys.executable, "grade.py", "tiny", str(self.hand_ins)]
        run = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)
        with (self.root / "grades-tiny.csv").open(encoding="utf-8", newline="") as file:
            return run, {row["student"]: row for row in csv.DictReader(file)}


RIGHT = "# Task 1\ndef twice(x):\n    return x + x"


def test_grading_of_what_is_handed_in(course_folder: Path, tmp_path: Path) -> None:
    of_students = Class(course_folder, tmp_path / "hand-ins")
    hand_in, hand_ins = of_students.hand_in, of_students.hand_ins
    hand_in("warned", "# Task 1\nimport warnings\ndef twice(x):\n"
                      "    warnings.warn('is that so?')\n    return 2 * x")  # fmt: skip
    hand_in("bare", RIGHT, bare=True)
    hand_in("guess", "# Task 1\ndef twice(x):\n    return 2")  # what the visible test asks for
    hand_in("loop", RIGHT, "while True:\n    pass")
    hand_in("dies", RIGHT, "import os\nos._exit(1)")
    nbformat.write(of_students.released, hand_ins / "nothing.ipynb")
    over = copy.deepcopy(of_students.released)
    over.cells[3].source = "I typed over the first line."
    nbformat.write(over, hand_ins / "over.ipynb")
    (hand_ins / "words.ipynb").write_text("my homework", encoding="utf-8")
    hand_in("two words", RIGHT)

    run, rows = of_students.grade()
    assert run.returncode == 1
    possible = rows.pop("points possible")
    assert (possible["tests"], possible["answer"], possible["sum"]) == ("3", "2", "5")
    found = {student: (row["tests"], row["sum"], row["to read"]) for student, row in rows.items()}
    assert found == {
        "warned": ("3", "3", "answer"), "bare": ("3", "3", "answer"),
        "guess": ("0", "0", "answer"), "loop": ("3", "3", "answer"), "nothing": ("0", "0", ""),
        "over": ("0", "0", "answer"), "dies": ("", "", ""), "words": ("", "", ""),
        "two words": ("", "", ""),
    }  # fmt: skip
    for student, note in {
        "bare": "no code cell begins with '# Tests of task 1 (3 points)'",
        "dies": "not graded: nbclient.exceptions.DeadKernelError: Kernel died",
        "words": "not graded: this is no notebook (NotJSONError)",
        "two words": "not graded: a student's name may have",
    }.items():
        assert rows[student]["note"].startswith(note)
        assert note in run.stderr
    assert not rows["over"]["note"]
    assert "6 graded, 5 points possible, 3 not graded" in run.stdout


def test_grading_again(course_folder: Path, tmp_path: Path) -> None:
    """Only what changed is graded again: the hand-in, whatever its date, or the tests."""
    of_students = Class(course_folder, tmp_path / "hand-ins")
    of_students.hand_in("ada", RIGHT)
    of_students.hand_in("bea", "# Task 1\ndef twice(x):\n    return 2")
    run, rows = of_students.grade()
    assert run.returncode == 0 and (rows["ada"]["sum"], rows["bea"]["sum"]) == ("3", "0")

    with Gradebook(f"sqlite:///{course_folder / 'gradebook.db'}") as gradebook:  # read by hand
        read = gradebook.find_grade("answer", "tiny", "tiny", "ada")
        read.manual_score, read.needs_manual_grade = 1.5, False
        gradebook.db.commit()
    graded = course_folder / "autograded" / "ada" / "tiny" / "tiny.ipynb"
    before = graded.stat().st_mtime_ns
    of_students.hand_in("bea", RIGHT)
    os.utime(of_students.hand_ins / "bea.ipynb", (0, 0))  # as an archive keeps dates
    run, rows = of_students.grade()
    assert run.returncode == 0 and rows["bea"]["sum"] == "3"
    assert (rows["ada"]["answer"], rows["ada"]["sum"], rows["ada"]["to read"]) == ("1.5", "4.5", "")
    assert graded.stat().st_mtime_ns == before, "what had not changed was graded again"

    source = course_folder / "source" / "tiny" / "tiny.ipynb"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("twice(2) == 4", "twice(2) == 5"), encoding="utf-8")
    (of_students.hand_ins / "bea.ipynb").unlink()
    run, rows = of_students.grade()
    assert rows["ada"]["tests"] == "0", "graded by the tests of before"
    assert rows["bea"]["sum"] == "3", "who handed in before has left the table"

    of_students.hand_in("ada", RIGHT, "import os\nos._exit(1)")
    run, rows = of_students.grade()
    assert run.returncode == 1 and rows["ada"]["sum"] == ""


def test_grading_an_empty_folder_says_so(course_folder: Path, tmp_path: Path) -> None:
    (course_folder / "source" / "tiny").mkdir(parents=True)
    empty = tmp_path / "empty"
    command = [sys.executable, "grade.py", "tiny", str(empty)]
    run = subprocess.run(command, cwd=course_folder, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and f"no notebook (*.ipynb) lies in {empty}" in run.stderr
