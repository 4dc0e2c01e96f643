"""Which notebooks nbval leaves alone: assignments as students see them, which lack the answers."""

collect_ignore_glob = [
    f"assignments/{folder}/*" for folder in ("release", "submitted", "autograded", "feedback")
]
