"""Prepares small scenes in a process of its own, to be killed or run beside another.

    python prepare_scenes.py DATA_DIR PROCESSES

Prints a line per event: the file of the shard, and what has become of it.
"""

import errno
import os
import signal
import sys
import time

from segjax.data import datasets, prepare, shards

DATA = {
    "name": "scenes",
    "scenes_size": (32, 32),
    "scenes_train": 23,
    "scenes_validation": 4,
    "scenes_seed": 0,
}
RECORDS = 3  # per shard: eight shards train, two validate


def slowly(split, index):
    """A record of DATA that takes a while."""
    time.sleep(0.02)
    return datasets.recipe(DATA).record(split, index)


def dies(split, index):
    """A record whose process is killed, as for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def finds_disk_full(split, index):
    """A record that finds the disk full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


if __name__ == "__main__":
    shards.RECORDS = RECORDS
    data = DATA | {"data_dir": sys.argv[1]}
    recipe = datasets.recipe(data)._replace(record=slowly)
    print("ready", flush=True)
    for event in prepare.write(recipe, data, processes=int(sys.argv[2])):
        state = "finished" if event.finished else event.records
        print(event.shard.file, state, flush=True)
