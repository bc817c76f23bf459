"""Averages the statistics of batch normalization over batches, after training.

    python -m experiments.recalibrate --workdir /tmp/run --output /tmp/run_recalibrated
    python -m experiments.recalibrate --workdir /tmp/run --output /tmp/out \\
        --checkpoint=latest --batches=501 --config.batch_size=28

The authors of DeconvNet use no running averages, but the mean and the unbiased variance
of --batches batches of the training stream, crops and augmentation included.  OUTPUT
becomes a workdir of one checkpoint with these statistics and the same weights, which
all programs take; its validation mIoU is printed beside that of the original.
--config.* overrides fields of the run's own config, such as batch_size.
"""

import itertools
from pathlib import Path

import jax
import tqdm
from absl import flags
from ml_collections import ConfigDict

from experiments.shared import (
    cli,
    evaluation,
    predict_flags,
    run_description,
    training_run,
)
from experiments.shared.peers import Peers
from segjax import (
    checkpoint,
    checkpoint_scores,
    compilation,
    evaluators,
    files,
    metrics,
    recalibration,
    sharding,
)
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.errors import UserError
from segjax.inference.trained import load_model
from segjax.models import layers

BATCHES = 501
"""As in the authors' script."""


def recalibrate(
    config: ConfigDict,
    workdir: Path,
    *,
    output: Path,
    batches: int = BATCHES,
    which: str = "best",
) -> tuple[float | None, float]:
    """Writes the workdir; returns the validation mIoU before, if known, and after.

    Raises:
      UserError: no such checkpoint, a model without batch normalization, other data
        than those of the run, or ``output`` holds a run already.
    """
    if batches < 1:
        raise UserError(f"--batches is {batches}; expected 1 or more")
    if (output / workdir_lib.CONFIG).exists():
        raise UserError(f"--output {output}: holds a run already; choose another one")
    known = workdir_lib.read_dataset(workdir)
    run = training_run.build_run(config)
    workdir_lib.check_same_classes(known, run.info)
    model, variables, step = load_model(
        config, workdir, info=run.info, which=which, mesh=run.mesh
    )
    recalibration.check(model, variables["batch_stats"])
    folder, _ = checkpoint_scores.find(workdir, which)
    before = checkpoint_scores.scores(folder).get(step)
    eval_source, _ = datasets.load(config.data, config.data.eval_split)
    replicated = sharding.replicated(run.mesh)
    average = compilation.precision(config.precision)(recalibration.make_step(model))
    average = layers.bn_batch_size(config.bn_batch_size)(average)
    average = jax.jit(average, donate_argnums=1, out_shardings=replicated)
    stream = run.batches(0)
    try:
        variables["batch_stats"] = recalibration.average(
            average,
            variables,
            tqdm.tqdm(
                itertools.islice(stream, batches),
                desc="recalibrate",
                total=batches,
                unit="batch",
                disable=jax.process_index() > 0,
            ),
            mesh=run.mesh,
        )
    finally:
        if hasattr(stream, "close"):
            stream.close()
    eval_step = evaluation.make_eval_step(
        config, model, len(run.info.classes), run.mesh
    )
    confusion, _ = evaluators.evaluate(
        eval_step,
        variables,
        batches=evaluation.eval_batches(config, eval_source, run.info.channels),
        mesh=run.mesh,
        pictures=0,
    )
    miou = metrics.scores(confusion)["miou"]
    config = config.copy_and_resolve_references()
    config.total_steps, config.total_epochs = max(step, 1), 0.0
    state = run.init().replace(step=jax.device_put(step, replicated), **variables)
    if jax.process_index() == 0:
        cli.make_folder(output)
        splits = training_run.splits(config, run.source, eval_source)
        run_description.write_description(config, run.info, splits, workdir=output)
    manager = checkpoint.open_folder(output / workdir_lib.CHECKPOINTS, 1)
    checkpoint.save(manager, state, {"recalibrated": batches})
    checkpoint.add_score(manager, step, miou)
    manager.close()
    return before, miou


def main(argv) -> None:
    del argv
    values = flags.FLAGS
    cli.start()
    output = files.absolute(values.output)
    with Peers(exit_code=cli.LOST):
        before, after = recalibrate(
            values.config,
            files.absolute(values.workdir),
            output=output,
            batches=values.batches,
            which=values.checkpoint,
        )
    if jax.process_index() == 0:
        known = "not known" if before is None else f"{before:.4f}"
        print(
            f"validation mIoU before: {known}, after: {after:.4f}; written to {output}"
        )


if __name__ == "__main__":
    cli.define_workdir_config()
    flags.DEFINE_string("output", None, "The new workdir.", required=True)
    flags.DEFINE_string("checkpoint", "best", predict_flags.CHECKPOINT_HELP)
    flags.DEFINE_integer("batches", BATCHES, "Training batches that are averaged over.")
    cli.run(main)
