"""BoxSup: masks of boxes and a network, improved in turns.

    python -m experiments.boxsup --config configs/boxsup_animals.py \\
        --workdir runs/boxsup --config.data.root=/path/to/VOCdevkit \\
        --config.init_from=weights/squeezenet.safetensors

Each of --rounds makes masks of the boxes, as experiments.pseudo_labels --method=boxsup
does, and trains the network on them, as experiments.train does: in the first round the
masks that fit the boxes best, from config.init_from; then those that the network of the
round before agrees with, from its weights. config.total_steps (or total_epochs) are the
steps of one round, and the learning rate starts anew in each.

WORKDIR/labels_N and WORKDIR/round_N (N = 1, 2, ..) are the folders of these programs;
the last round is the result. The same command started again continues.

Exit codes: those of experiments.train; 1 if images could not be read.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import pseudo_labels, train
from experiments.shared import cli
from segjax import files
from segjax.errors import UserError
from segjax.weak import boxsup


def run(
    config: ConfigDict, workdir: Path, *, rounds: int, settings: boxsup.Settings
) -> int:
    """Makes masks and trains in turns; returns the exit code.

    Args:
      config: of the training of each round; ``data.supervision`` and
        ``data.pseudo_labels`` are set here.
      workdir: of all rounds.
      rounds: how many.
      settings: how candidates are chosen.

    Raises:
      UserError: a wrong field, or data that are wrong.
    """
    if config.data.supervision not in ("full", "pseudo"):
        raise UserError(
            f"--config.data.supervision is {config.data.supervision!r}; expected "
            "'pseudo': BoxSup trains on the masks that it makes of the boxes"
        )
    options = pseudo_labels.Options(method="boxsup", choice=settings)
    before: Path | None = None
    for number in range(1, rounds + 1):
        labels, current = workdir / f"labels_{number}", workdir / f"round_{number}"
        config = config.copy_and_resolve_references()
        config.data.supervision = "pseudo"
        config.data.pseudo_labels = str(labels)
        if before is not None:
            config.init_from = str(before)
        cli.log(f"round {number} of {rounds}")
        code = pseudo_labels.write(config, labels, options=options, workdir=before)
        code = code or train.train(config, current)
        if code:
            return code
        before = current
    return 0


def main(argv) -> int:
    del argv
    values = flags.FLAGS
    workdir = files.user_path("--workdir", values.workdir).absolute()
    cli.start(trains=True)
    pseudo_labels.check_alone("experiments.boxsup")
    settings = boxsup.Settings(values.weight, values.top, values.smallest_overlap)
    return run(values.config, workdir, rounds=values.rounds, settings=settings)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A file in configs/.")
    flags.DEFINE_string("workdir", None, "Folder of all rounds.")
    flags.DEFINE_integer("rounds", 3, "How often masks are made.", lower_bound=1)
    pseudo_labels.define_choices()
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
