"""The book: it builds without a warning, whole, and reads the same with no network."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src",
           "video": "src", "object": "data", "embed": "src"}  # fmt: skip
HARMLESS_LINKS = {"canonical", "prev", "next", "author", "license"}  # named, but never fetched


class Page(html.parser.HTMLParser):
    """What a test asks of one page: what it loads, its links, its slides and its mathematics."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.images_without_text: list[str] = []
        self.sliders = self.formulas = 0
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "a":
            self.links.append(given.get("href") or "")
        if tag == "math":
            self.formulas += 1
        if tag == "input" and given.get("type") == "range":
            self.sliders += 1
        alt = given.get("alt") or ""
        if tag == "img" and (not alt or alt == given.get("src")):  # Sphinx's way to have none
            self.images_without_text.append(given.get("src") or "")
        if tag in LOADING and given.get("rel") not in HARMLESS_LINKS:
            self.loaded.append(given.get(LOADING[tag]) or "")


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("book")
    command = Path(sys.executable).parent / "jupyter-book"
    build = subprocess.run(
        [command, "build", ROOT, "-W", "--keep-going", "--path-output", out],
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout[-3000:] + build.stderr[-3000:]
    return out / "_build" / "html"


@pytest.fixture(scope="module")
def pages(book: Path) -> dict[str, Page]:
    return {name: Page(book / f"{name}.html") for name in toc_pages()}


def toc_pages() -> list[str]:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [name.removesuffix(".ipynb").removesuffix(".md") for name in [toc["root"], *chapters]]


def notebook_pages() -> list[str]:
    return [name for name in toc_pages() if (ROOT / f"{name}.ipynb").exists()]


def test_every_page_of_the_contents_is_built(book: Path) -> None:
    missing = [name for name in toc_pages() if not (book / f"{name}.html").is_file()]
    assert not missing


def test_every_notebook_and_prose_page_is_in_the_contents() -> None:
    sources = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    names = {path.relative_to(ROOT).with_suffix("").as_posix() for path in sources}
    assert names == set(toc_pages())


def test_pages_load_nothing_from_other_hosts(book: Path) -> None:
    for path in book.rglob("*.html"):
        if "_static" in path.parts:
            continue
        foreign = [url for url in Page(path).loaded if re.match(r"(https?:)?//", url)]
        assert not foreign, f"{path.name} loads {foreign}"
    for path in book.rglob("*.css"):
        style = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style), path


def test_no_page_waits_for_a_script_that_is_not_there(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        hosts = ("cdn.jsdelivr.net", "unpkg.com", "cdnjs.cloudflare.com", "MathJax")
        assert not [host for host in hosts if host in page.text], name


def test_mathematics_is_drawn_by_the_browser(pages: dict[str, Page], book: Path) -> None:
    assert pages["book/notation"].formulas >= 20
    for name, page in pages.items():
        assert not re.search(r"<mi>\\[A-Za-z]", page.text), f"{name} shows LaTeX"
    assert (book / "_static" / "stix-two-math.woff2").stat().st_size > 50_000


def test_unknown_mathematics_is_reported(load_script: Callable[[str], ModuleType]) -> None:
    """The check above can fail: a command that does not exist reaches the log as a warning."""
    from docutils import nodes

    mathml = load_script("book/_ext/mathml.py")
    warned: list[str] = []
    mathml.logger.warning = lambda message, *args, **_: warned.append(message % args)
    assert "<mfrac>" in mathml.to_mathml(r"\frac{a}{b}", nodes.math(), "inline")
    assert not warned
    mathml.to_mathml(r"\nosuchcommand{a}", nodes.math(), "inline")
    assert r"\nosuchcommand" in warned[0]


def test_images_have_a_text(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        assert not page.images_without_text, f"{name}: {page.images_without_text}"


@pytest.mark.parametrize("name", notebook_pages())
def test_notebook_pages_can_be_launched(name: str, pages: dict[str, Page]) -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    slug = config["repository"]["url"].removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{slug}/blob/main/{name}.ipynb"
    assert colab in pages[name].links


@pytest.mark.parametrize("name", notebook_pages())
def test_moving_figures_reach_the_page(name: str, pages: dict[str, Page]) -> None:
    notebook = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    html_outputs = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    sliders = sum(len(re.findall(r'<input[^>]*type="?range', text)) for text in html_outputs)
    assert pages[name].sliders == sliders >= 1
    live = sum(text.count('class="live-figure"') for text in html_outputs)
    assert pages[name].text.count('class="live-figure"') == live >= 1


def test_cells_of_stacked_tables_name_their_columns(pages: dict[str, Page]) -> None:
    rows = re.findall(r"<tr.*?</tr>", pages["book/faithfulness"].text, re.S)
    (teacher,) = [row for row in rows if "<p>Teacher</p>" in row]
    names = re.findall(r'<span class="column-name">(.*?)</span>', teacher)
    assert names == ["The paper: ", "Here: "]


def test_the_address_is_the_same_everywhere() -> None:
    script = ROOT / "book" / "publish_address.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_a_fork_publishes_as_itself(tmp_path: Path) -> None:
    """One line changed and one command run: no place still names the old address as its own."""
    for name in ("_config.yml", "README.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns("figures"))
    config = (tmp_path / "_config.yml").read_text(encoding="utf-8")
    slug = yaml.safe_load(config)["repository"]["url"].removeprefix("https://github.com/")
    (tmp_path / "_config.yml").write_text(config.replace(slug, "some.one/her-fork"), "utf-8")
    script = tmp_path / "book" / "publish_address.py"
    assert subprocess.run([sys.executable, script, "--check"]).returncode == 1
    assert subprocess.run([sys.executable, script]).returncode == 0
    assert subprocess.run([sys.executable, script, "--check"]).returncode == 0
    for path in (p for p in tmp_path.rglob("*") if p.suffix in {".md", ".cff", ".toml", ".ipynb"}):
        assert slug not in path.read_text(encoding="utf-8"), path


def test_only_the_address_changes(load_script: Callable[[str], ModuleType]) -> None:
    with_address = load_script("book/publish_address.py").with_address
    before = (
        '"!pip install -q git+https://github.com/a/b.git\\n"\n'
        "git clone https://github.com/a/b.\n"
        "https://colab.research.google.com/github/a/b/blob/main/n.ipynb\n"
        "compare https://github.com/hq-deng/RD4AD\n"
    )
    after = before.replace("/a/b", "/new/name")
    assert with_address(before, "new/name") == after
    assert with_address(after, "a/b") == before


def test_results_page_is_what_the_results_files_say() -> None:
    command = [sys.executable, str(ROOT / "book" / "make_results.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
