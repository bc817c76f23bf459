"""Writes the records of a data set once, in parallel, for all hosts that train on it.

    python -m experiments.prepare --config configs/fcn8s_camvid.py \\
        --config.data.root=/data/CamVid --config.data.data_dir=/shared/records
    python -m experiments.prepare --config configs/quickstart.py --processes=8
    python -m experiments.prepare --list --config.data.data_dir=/shared/records

The images and label maps of config.data are checked and written as array_record files
to DATA_DIR/NAME/KEY/VERSION, where experiments.train finds them: with the same
--config.data.root and --config.data.data_dir, or, where the raw files are not there,
with --config.data.root= (empty).  Small data sets need none of it: training prepares
them itself.  Others are read in place until they are prepared.

A preparation that was killed is continued by the same command.  Several hosts may run
it at the same time on a data_dir that they share; they then share the work.  All images
are read before an error is reported, and every bad one is named.

--check=FOLDER looks at own images and masks instead: it checks them as training does,
decodes every image, prints counts, class weights and the values of every channel, and
draws augmented examples into --output, with the augmentation of --config, if given:

    python -m experiments.prepare --check=FOLDER --output=/tmp/look \
        --config configs/own_data.py --config.data.channels=5

--list shows the records in data_dir, and what is left of killed preparations.

Exit codes: 0 done; 1 --check has found damaged images; 2 bad input, such as a damaged
image or a full disk.
"""

import os
import shlex
import sys
import time
from collections import Counter

import tqdm
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.shared import check_folder, cli, recipes
from segjax import config as config_lib
from segjax import files, tables
from segjax.data import datasets, prepare
from segjax.errors import UserError


def write(config: ConfigDict, processes: int) -> list[str]:
    """Writes the records of ``config.data`` unless they are there.

    Args:
      config: its ``data`` are prepared.
      processes: that write.

    Returns:
      What was written, as lines of text.

    Raises:
      UserError: the data are wrong, or the records cannot be written.
    """
    began = time.monotonic()
    recipe = datasets.recipe(config.data)
    folder = prepare.folder_of(recipe, config.data)
    sizes = {split: len(items) for split, items in recipe.splits.items()}
    cli.log(f"{recipe.form.name}: {_counts(sizes)} images, to {folder}")
    done: Counter[str] = Counter()
    earlier = 0
    there = bool(prepare.prepared(recipe.form, recipe.key, config.data))
    total = sum(sizes.values())
    with tqdm.tqdm(total=total, desc="preparing", unit="image", disable=there) as bar:
        for event in prepare.write(recipe, config.data, processes=processes):
            if event.problem:
                tqdm.tqdm.write(f"bad: {event.problem}", file=bar.fp)
            if event.finished and not done[event.shard.file]:
                earlier += event.records
            done[event.shard.file] = event.records
            bar.update(sum(done.values()) - bar.n)
    (made,) = [p for p in prepare.find_all(config.data) if p.folder == folder]
    seconds = time.monotonic() - began
    if not done:
        how = "were there already"
    elif earlier:
        how = (
            f"{sum(done.values()) - earlier} of them written in {seconds:.1f} s, the "
            "others by an earlier or another program"
        )
    else:
        how = f"written in {seconds:.1f} s"
    data = config.data
    return [
        f"{recipe.form.name}: {_counts(made.records)} records, {_size(made.bytes)}, "
        f"{how}: {folder}",
        "read by: python -m experiments.train --config FILE --workdir WORKDIR "
        + " ".join(
            shlex.quote(f"--config.data.{name}={data[name]}")
            for name in ("name", "root", "data_dir")
            if data[name]
        ),
    ]


def overview(config: ConfigDict) -> list[str]:
    """What is in ``config.data.data_dir``, as lines of text."""
    root = prepare.root_of(config.data)
    found = prepare.find_all(config.data)
    if not found:
        return [f"{root} holds no records"]
    rows = [("folder", "records", "size")]
    for made in found:
        if made.records:
            state = _counts(made.records)
        elif made.stale:
            state = "incomplete: prepare again, or remove it"
        else:
            state = "being written"
        rows.append((str(made.folder.relative_to(root)), state, _size(made.bytes)))
    return [f"records in {root}:", tables.text_table(rows)]


def _counts(records: dict[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in records.items())


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def main(argv) -> int:
    del argv
    values = flags.FLAGS
    config: ConfigDict = values.config
    bad: list[str] = []
    if values.check:
        output = values.output or None
        if output:
            output = files.user_path("--output", output).absolute()
        lines, bad = check_folder.check(config, values.check, output)
    elif values.list:
        lines = overview(config)
    elif not _chosen():
        raise UserError(
            "give the data set: --config FILE or --config.data.name=NAME; --help "
            "explains"
        )
    elif values.processes < 1:
        raise UserError(f"--processes is {values.processes}; expected 1 or more")
    else:
        config_lib.check(config)
        lines = write(config, values.processes)
    for line in lines:
        print(line)
    for text in bad:
        print(f"bad: {text}", file=sys.stderr)
    return 1 if bad else 0


def _chosen() -> bool:
    """Whether the command line says which data set is meant."""
    return bool(cli.flag_value("config") or cli.flag_value("config.data.name"))


def define_flags() -> None:
    """Defines the flags; a config file is not needed to say what the data are."""
    if cli.flag_value("config"):
        config_flags.DEFINE_config_file("config", None, "A file in configs/.")
    elif cli.flag_value("check"):
        config_flags.DEFINE_config_dict(
            "config",
            config_lib.make(model={"padding": "same"}, augment=recipes.OWN_AUGMENT),
        )
    else:
        config_flags.DEFINE_config_dict("config", config_lib.make())
    flags.DEFINE_integer(
        "processes", len(os.sched_getaffinity(0)), "Processes that write."
    )
    flags.DEFINE_string(
        "check", "", "A folder of own images and masks, which is checked."
    )
    flags.DEFINE_string("output", "", "Where --check writes a picture; '': nowhere.")
    flags.DEFINE_boolean("list", False, "Shows what is prepared, and writes nothing.")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
