"""Grade notebooks as students hand them in: ``python grade.py ASSIGNMENT FOLDER``.

FOLDER holds one notebook for each student, named after the student: ``ada.ipynb``. Each is put in
nbgrader's place for submissions, ``submitted/STUDENT/ASSIGNMENT``, and graded by ``nbgrader
autograde``; points go into nbgrader's gradebook and into ``grades-ASSIGNMENT.csv``. All of it lies
in this folder, and git ignores it. What was graded already, by the tests as they are now, is not
graded again.

Grading runs the students' code with your rights: do it where it can do no harm.

nbgrader knows the cells of an assignment by metadata that not every editor keeps. Here they are
known by their first lines, or else by that metadata. What cannot be found is named.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook, MissingEntry

HERE = Path(__file__).resolve().parent
GENERATED = "generated"  # the students' version of this run; release/ is what was handed out
CHECKSUM = "checksum.txt"


def first_line(cell: nbformat.NotebookNode) -> tuple[str, str]:
    """What a graded cell is known by: its kind and its first line, without blanks at the ends."""
    return cell.cell_type, cell.source.strip().partition("\n")[0].strip()


def grade_id(cell: nbformat.NotebookNode) -> tuple[str, str | None]:
    """The name under which nbgrader knows a cell, None for other cells, with the cell's kind."""
    return cell.cell_type, cell.metadata.get("nbgrader", {}).get("grade_id")


def restore(submission: nbformat.NotebookNode, released: nbformat.NotebookNode) -> list[str]:
    """Give the submission's graded cells the metadata of the released ones; return complaints.

    Of several cells with the same first line the last counts: it is what holds when all have run.
    A cell with points that is missing comes back as it was released, before the next one there is.
    """
    complaints = []
    by_line = {first_line(cell): cell for cell in submission.cells}
    by_id = {grade_id(cell): cell for cell in submission.cells}
    for cell in submission.cells:
        cell.metadata.pop("nbgrader", None)
    following = len(submission.cells)
    for cell in reversed([cell for cell in released.cells if "nbgrader" in cell.metadata]):
        own = by_line.get(first_line(cell)) or by_id.get(grade_id(cell))
        if own is not None and "nbgrader" not in own.metadata:
            own.metadata.update(cell.metadata)
            following = next(k for k, c in enumerate(submission.cells) if c is own)
        else:
            kind, line = first_line(cell)
            complaints.append(f"no {kind} cell begins with {line!r}")
            if cell.metadata.nbgrader.grade:
                submission.cells.insert(following, cell)
    return complaints[::-1]


def take_in(hand_in: Path, student: str, assignment: str) -> tuple[bool, list[str]]:
    """Put one hand-in where nbgrader looks for it.

    Returns whether it has to be graded, and complaints. Raises ValueError if the file is no
    notebook, or its name no name for a student.
    """
    if not re.fullmatch(r"\w[\w.@-]*", student):
        raise ValueError("a student's name may have letters, digits, and . _ @ - in it")
    name = f"{assignment}.ipynb"
    released = nbformat.read(HERE / GENERATED / assignment / name, as_version=4)
    try:
        submission = nbformat.v4.upgrade(nbformat.read(hand_in, as_version=4))
        complaints = restore(submission, released)
        _, submission = nbformat.validator.normalize(submission)  # ids that occur twice
        text = nbformat.writes(submission)
    except Exception as error:  # not JSON, not text, not a notebook: there is no one error
        raise ValueError(f"this is no notebook ({type(error).__name__})") from error
    tests = (HERE / "source" / assignment / name).read_bytes()
    checksum = hashlib.sha256(text.encode() + tests).hexdigest()
    graded = HERE / "autograded" / student / assignment / CHECKSUM  # nbgrader copies it there
    if graded.is_file() and graded.read_text(encoding="ascii") == checksum:
        return False, complaints
    folder = HERE / "submitted" / student / assignment
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    (folder / CHECKSUM).write_text(checksum, encoding="ascii")
    return True, complaints


def nbgrader(*arguments: str) -> str:
    """Run a command of nbgrader in this folder; return "", or the last line of what went wrong."""
    run = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments], cwd=HERE, check=False,
        encoding="utf-8", errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    with (HERE / "nbgrader.log").open("a", encoding="utf-8") as log:
        log.write(run.stdout)
    if run.returncode == 0:
        return ""
    errors = [line for line in run.stdout.splitlines() if re.match(r"\s*\w+(\.\w+)*Error", line)]
    return f"{(errors or ['nbgrader failed'])[-1].strip()} (more in {HERE / 'nbgrader.log'})"


def points(assignment: str) -> dict[str, dict[str, str]]:
    """Lines of the table of grades: points by task, their sum, and what has to be read by hand.

    By student; the first, "points possible", holds the points that there are.
    """
    with Gradebook(f"sqlite:///{HERE / 'gradebook.db'}") as gradebook:
        notebook = gradebook.find_notebook(assignment, assignment)
        tasks = {cell.name: cell.max_score for cell in notebook.grade_cells}
        found = {"points possible": (tasks, notebook.max_score, "")}
        for submission in gradebook.assignment_submissions(assignment):
            (handed_in,) = submission.notebooks
            grades = {grade.name: grade for grade in handed_in.grades}
            to_read = " ".join(name for name in tasks if grades[name].needs_manual_grade)
            scores = {name: grades[name].score for name in tasks}
            found[submission.student.id] = (scores, handed_in.score, to_read)
    return {
        student: {
            "student": student,
            **{name: f"{score:g}" for name, score in {**scores, "sum": total}.items()},
            "to read": to_read,
            "note": "",
        }
        for student, (scores, total, to_read) in found.items()
    }


def main() -> int:
    assignments = sorted(path.name for path in (HERE / "source").iterdir() if path.is_dir())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("assignment", choices=assignments)
    parser.add_argument("folder", type=Path, help="one notebook for each student: ada.ipynb")
    arguments = parser.parse_args()
    # nbgrader calls alembic by its bare name, which only an activated environment would find.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    assignment, hand_ins = arguments.assignment, sorted(arguments.folder.glob("*.ipynb"))
    if not hand_ins:
        parser.error(f"no notebook (*.ipynb) lies in {arguments.folder}")
    into = f"--CourseDirectory.release_directory={GENERATED}"
    if problem := nbgrader("generate_assignment", assignment, "--create", "--force", into):
        print(problem, file=sys.stderr)
        return 1
    notes, failed = {}, set()
    for hand_in in hand_ins:
        student = unicodedata.normalize("NFC", hand_in.stem)
        try:
            changed, complaints = take_in(hand_in, student, assignment)
            command = ("autograde", assignment, "--create", "--force", "--student", student)
            if changed and (problem := nbgrader(*command)):
                raise ValueError(problem)
            own = points(assignment).get(student)
            if own is None:
                raise ValueError(f"not in gradebook.db: delete autograded/{student}, and try again")
        except (ValueError, MissingEntry) as error:
            failed.add(student)
            notes[student] = f"not graded: {error}"
            print(f"{hand_in} is {notes[student]}", file=sys.stderr)
            continue
        notes[student] = "; ".join(complaints)
        for complaint in complaints:
            print(f"{hand_in}: {complaint}", file=sys.stderr)
        to_read = f", to read by hand: {own['to read']}" if own["to read"] else ""
        print(f"{student}: {own['sum']} points{to_read}", flush=True)
    rows = points(assignment)
    columns = list(rows["points possible"])
    for student, note in notes.items():  # of a failed hand-in no older points
        rows[student] = {} if student in failed else rows[student]
        rows[student] |= {"student": student, "note": note}
    table = HERE / f"grades-{assignment}.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows.values())
    possible = rows["points possible"]["sum"]
    graded = len(hand_ins) - len(failed)
    print(f"{graded} graded, {possible} points possible, {len(failed)} not graded: {table.name}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
