"""Write book/results.md and its picture from the results files: ``python book/make_results.py``.

The rows come from `dskd sweep` and `dskd novelty`, and all tables and comparisons from the rows. A
figure that is written into a sentence of ``results_page`` says in that sentence what it comes from.
``--check`` writes nothing and fails if the page is not what the files say.
"""

from __future__ import annotations

import argparse
import sys

from results_page import fusion, sections
from results_page.rows import BOOK, IMAGENET, RESULTS, row_parts
from results_page.text import PAPER_FORM, TEXT

from dskd_lite.sweep import read_results

PAGE = BOOK / "results.md"


def page() -> str:
    """The page's text."""
    rows, longer = (read_results(RESULTS / f"{name}.jsonl") for name in ("real_128", "longer"))
    full = read_results(RESULTS / "full_256.jsonl")
    ablations = read_results(RESULTS / "ablations.jsonl")
    again = ("dskd", IMAGENET, "128", "")  # the recommended setting stands among the main rows too
    ablations += [r for r in rows if r["category"] == "screw" and row_parts(r) == again]
    noise = read_results(RESULTS / "noise_on.jsonl")  # and there; its seed 3 is the ablations' own
    ablations += sections.as_recommended(noise, seeds=(0, 1, 2))
    return TEXT.format(
        tables=sections.main_tables(rows),
        gap=sections.teacher_gap(rows),
        peer=sections.peer_gap(rows),
        longer=sections.longer_training(rows, longer),
        full=sections.full_size(full),
        legacy=sections.legacy_pro(full),
        fusion=fusion.fusion_table(rows, longer),
        aim=fusion.fusion_aim(rows, longer),
        paper=PAPER_FORM,
        development=sections.development_table(read_results(RESULTS / "development.jsonl")),
        forms=fusion.form_study(read_results(RESULTS / "fusion_forms.jsonl")),
        ablations=sections.ablation_tables(ablations),
        ablations_verdict=sections.ablation_gaps(ablations),
        benchmark=sections.benchmark_table(read_results(RESULTS / "benchmark.jsonl")),
        classical=sections.classical_table(read_results(RESULTS / "classical.jsonl")),
        classical_verdict=sections.classical_verdict(
            read_results(RESULTS / "classical.jsonl"), rows
        ),
        thresholds=sections.threshold_table(rows),
        extras=sections.noise_places(noise) + sections.novelty_tables(),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the page is out of date")
    if parser.parse_args().check:
        return int(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    fusion.draw_forms(read_results(RESULTS / "fusion_forms.jsonl"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
