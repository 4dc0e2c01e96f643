"""Write the repository's address, kept in ``_config.yml``, wherever else it must stand.

``python book/publish_address.py`` rewrites the places that are not up to date and names them;
``--check`` only names them and exits with status 1 if there are any. So a fork changes one line.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("README.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml", "book/*.md",
         "notebooks/*.ipynb", "notebooks/assignments/*/*/*.ipynb")  # fmt: skip
SLUG = r"[\w.-]+/[\w.-]*?[\w-](?=\.git\b|[^\w.-]|\.?$|\.\s)"  # owner/name
# Where an address is ours, whoever's it was before; links to other projects have other forms.
OURS = (
    rf"(?<=git\+https://github\.com/){SLUG}",  # pip install in a Colab setup cell
    rf"(?<=git clone https://github\.com/){SLUG}",
    rf"(?<=colab\.research\.google\.com/github/){SLUG}",
    rf"(?<=repository-code: \"https://github\.com/){SLUG}",  # CITATION.cff
    rf"(?<=^Repository = \"https://github\.com/){SLUG}",  # pyproject.toml
    rf"(?<=https://github\.com/){SLUG}(?=/actions/workflows/)",  # badge
)


def repository_slug(config: str) -> str:
    """Return ``owner/name`` from the text of ``_config.yml``."""
    found = re.search(
        r"^repository:\n(?: .*\n)*? +url: *https://github\.com/([\w.-]+/[\w.-]+)", config, re.M
    )
    if not found:
        raise SystemExit("_config.yml: repository.url must read https://github.com/OWNER/NAME")
    return found[1].removesuffix(".git")


def with_address(text: str, slug: str) -> str:
    """Replace each address of this repository in ``text``; everything else stays byte for byte."""
    for pattern in OURS:
        text = re.sub(pattern, slug, text, flags=re.MULTILINE)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if needed")
    check = parser.parse_args().check
    slug = repository_slug((ROOT / "_config.yml").read_text(encoding="utf-8"))
    stale = []
    for path in sorted(path for pattern in FILES for path in ROOT.glob(pattern)):
        old = path.read_bytes().decode("utf-8")
        new = with_address(old, slug)
        if new != old:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_bytes(new.encode("utf-8"))
    for path in stale:
        print(f"{path} {'has another address than _config.yml' if check else 'rewritten'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
