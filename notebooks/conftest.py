"""Which notebooks nbval runs: the chapters, and the assignments with their answers."""

from pathlib import Path

HERE = Path(__file__).parent
# As students see them, or hand them in, assignments lack answers.
collect_ignore = [str(path) for path in (HERE / "assignments").iterdir() if path.name != "source"]
