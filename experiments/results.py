"""Writes docs/results.md: which claims of papers hold here, from the files in results/.

    python -m experiments.results
    python -m experiments.results --costs

results/ROW/DATA/report.csv is what experiments.report --results copied there of a
finished sweep, results/ROW/claim.toml says what a paper claims: docs/ablate.md
describes its keys.  results/costs.json holds what the full-size configs that they name
would cost; --costs counts these again, in some minutes.  Nothing else is read, and no
number of the page is typed by hand.

Exit codes: 0; 2 bad input.
"""

from pathlib import Path

import tqdm
from absl import flags

from experiments.shared import cli
from experiments.sweeps import claims, costs, results_page, results_plot
from segjax import files

COSTS = "costs.json"
"""In the folder of the claims."""


def count(results: Path) -> None:
    """Counts the costs of all full-size configs of the claims again.

    Raises:
      UserError: a claim is damaged, or a config file is wrong or not there.
    """
    found = dict.fromkeys(
        file for claim, _ in claims.read_all(results) for file in claim.full
    )
    bar = tqdm.tqdm(found, "counting", unit="config")
    costs.write(results / COSTS, {file: costs.count(file) for file in bar})


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
    counted = costs.read(results / COSTS)
    files.write_text(page, results_page.page(found, counted))
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
    folder = Path(values.results).expanduser()
    if values.costs:
        count(folder)
    written = write(folder, Path(values.output).expanduser())
    print("written:", ", ".join(map(str, written)))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("results", "results", "Folder of the claims and reports.")
    flags.DEFINE_bool("costs", False, "Count what the full-size configs cost again.")
    flags.DEFINE_string("output", "docs/results.md", "The page.")
    cli.run(main)
