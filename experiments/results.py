"""Writes docs/results.md: which claims of papers hold here, from the files in results/.

    python -m experiments.results

results/ROW/DATA/report.csv is what experiments.report --results copied there of a
finished sweep, results/ROW/claim.toml says what a paper claims: docs/ablate.md
describes its keys.  Nothing else is read, and no number of the page is typed by hand.

Exit codes: 0; 2 bad input.
"""

from pathlib import Path

from absl import flags

from experiments.shared import cli
from experiments.sweeps import claims, results_page, results_plot
from segjax import files


def write(results: Path, page: Path) -> list[Path]:
    """Writes the page, and those of its plots that are not current.

    Args:
      results: folder of the claims and reports.
      page: Markdown file; plots go into images/results beside it.

    Returns:
      The files that were written.

    Raises:
      UserError: a claim or report is missing or damaged, or they do not fit.
    """
    found = claims.read_all(results)
    cli.make_folder(page.parent / "images" / "results")
    written = [page]
    files.write_text(page, results_page.page(found))
    for claim, data in found:
        path = page.parent / results_page.image_name(claim)
        drawn = results_plot.panels(claim, data)
        if drawn and results_plot.digest_of(path) != results_plot.digest(drawn):
            with files.atomic_write(path) as partial:
                partial.write_bytes(results_plot.plot(drawn))
            written.append(path)
    return written


def main(argv) -> int:
    del argv
    values = flags.FLAGS
    written = write(Path(values.results).expanduser(), Path(values.output).expanduser())
    print("written:", ", ".join(map(str, written)))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("results", "results", "Folder of the claims and reports.")
    flags.DEFINE_string("output", "docs/results.md", "The page.")
    cli.run(main)
