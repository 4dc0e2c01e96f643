"""Grade notebooks as students hand them in: ``python grade.py ASSIGNMENT FOLDER``.

FOLDER holds one notebook for each student, named after the student: ``ada.ipynb``. Each is put in
nbgrader's place for submissions, ``submitted/STUDENT/ASSIGNMENT``, and graded by ``nbgrader
autograde``; points go into nbgrader's gradebook and into ``grades-ASSIGNMENT.csv``. All of it lies
in this folder, and git ignores it. A hand-in that has not changed is not graded again.

Grading runs the students' code with your rights: do it where it can do no harm.

nbgrader knows the cells of an assignment by metadata that not every editor keeps. Here they are
known by their first lines, and get their metadata back. What cannot be found is named, and
graded without an answer.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook

HERE = Path(__file__).resolve().parent


def first_line(cell: nbformat.NotebookNode) -> tuple[str, str]:
    """What a graded cell is known by: its kind and its first line, without blanks at the ends."""
    return cell.cell_type, cell.source.strip().partition("\n")[0].strip()


def graded_cells(notebook: nbformat.NotebookNode) -> dict[tuple[str, str], nbformat.NotebookNode]:
    """The cells of an assignment that nbgrader has to know, by their first lines."""
    cells = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    found = {first_line(cell): cell for cell in cells}
    if len(found) < len(cells):
        raise ValueError("two graded cells have the same first line")
    return found


def restore(submission: nbformat.NotebookNode, released: nbformat.NotebookNode) -> list[str]:
    """Give the submission's graded cells the metadata of the released ones; return complaints.

    Of several cells with the same first line the last counts: it is what holds when all have run.
    A cell with points that is missing comes back as it was released, before the next one there is.
    """
    complaints = []
    last = {first_line(cell): cell for cell in submission.cells}
    for cell in submission.cells:
        cell.metadata.pop("nbgrader", None)
    following = len(submission.cells)
    for line, cell in reversed(graded_cells(released).items()):
        if line in last:
            last[line].metadata.update(cell.metadata)
            following = next(k for k, c in enumerate(submission.cells) if c is last[line])
        else:
            complaints.append(f"no {line[0]} cell begins with {line[1]!r}")
            if cell.metadata.nbgrader.grade:
                submission.cells.insert(following, cell)
    return complaints[::-1]


def take_in(hand_in: Path, assignment: str) -> list[str]:
    """Put one hand-in where nbgrader looks for it; return complaints.

    Raises ValueError if the file is no notebook, or its name no name for a student.
    """
    if not re.fullmatch(r"\w[\w.@-]*", hand_in.stem):
        raise ValueError("a student's name may have letters, digits, and . _ @ - in it")
    try:
        submission = nbformat.read(hand_in, as_version=4)
    except Exception as error:  # not JSON, not text, not a notebook: nbformat has no one error
        raise ValueError(f"this is no notebook ({type(error).__name__})") from error
    name = f"{assignment}.ipynb"
    released = nbformat.read(HERE / "release" / assignment / name, as_version=4)
    complaints = restore(submission, released)
    folder = HERE / "submitted" / hand_in.stem / assignment
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(submission, folder / name)
    handed_in = datetime.fromtimestamp(hand_in.stat().st_mtime, UTC)
    (folder / "timestamp.txt").write_text(f"{handed_in:%Y-%m-%d %H:%M:%S.%f} UTC\n")
    return complaints


def nbgrader(*arguments: str) -> str:
    """Run a command of nbgrader in this folder; return "", or the last line of what went wrong."""
    run = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments], cwd=HERE, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    with (HERE / "nbgrader.log").open("a", encoding="utf-8") as log:
        log.write(run.stdout)
    if run.returncode == 0:
        return ""
    errors = [line for line in run.stdout.splitlines() if re.match(r"\s*\w+(\.\w+)*Error", line)]
    return f"{(errors or ['nbgrader failed'])[-1].strip()} (more in {HERE / 'nbgrader.log'})"


def points(assignment: str, student: str | None = None) -> dict[str, str]:
    """A line of the table of grades: points by task, their sum, and what has to be read by hand.

    Of an assignment itself, without a student: the points that there are.
    """
    with Gradebook(f"sqlite:///{HERE / 'gradebook.db'}") as gradebook:
        notebook = gradebook.find_notebook(assignment, assignment)
        tasks = {cell.name: cell.max_score for cell in notebook.grade_cells}
        if student is None:
            row, total, to_read = tasks, notebook.max_score, ""
        else:
            handed_in = gradebook.find_submission_notebook(assignment, assignment, student)
            grades = {grade.name: grade for grade in handed_in.grades}
            row = {name: grades[name].score for name in tasks}
            total = handed_in.score
            to_read = " ".join(name for name in tasks if grades[name].needs_manual_grade)
    counted = {name: f"{score:g}" for name, score in {**row, "sum": total}.items()}
    return {"student": student or "of", **counted, "to read": to_read}


def main() -> int:
    assignments = sorted(path.name for path in (HERE / "source").iterdir())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("assignment", choices=assignments)
    parser.add_argument("folder", type=Path, help="one notebook for each student: ada.ipynb")
    arguments = parser.parse_args()
    # nbgrader calls alembic by its bare name, which only an activated environment would find.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    assignment, hand_ins = arguments.assignment, sorted(arguments.folder.glob("*.ipynb"))
    if not hand_ins:
        parser.error(f"no notebook (*.ipynb) lies in {arguments.folder}")
    if problem := nbgrader("generate_assignment", assignment, "--create", "--force"):
        print(problem, file=sys.stderr)
        return 1
    failed, rows = 0, [points(assignment)]
    for hand_in in hand_ins:
        student = hand_in.stem
        try:
            for complaint in take_in(hand_in, assignment):
                print(f"{hand_in}: {complaint}", file=sys.stderr)
            if problem := nbgrader("autograde", assignment, "--create", "--student", student):
                raise ValueError(problem)
        except ValueError as error:
            failed += 1
            print(f"{hand_in} is not graded: {error}", file=sys.stderr)
            continue
        rows.append(points(assignment, student))
        to_read = rows[-1]["to read"]
        note = f", to read by hand: {to_read}" if to_read else ""
        print(f"{student}: {rows[-1]['sum']} of {rows[0]['sum']} points{note}", flush=True)
    table = HERE / f"grades-{assignment}.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows) - 1} graded, {failed} not: {os.path.relpath(table)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
