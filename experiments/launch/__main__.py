"""Starts a training run on a cluster: the same worker command on every host.

    python -m experiments.launch --engine gke --config configs/pspnet_camvid.py \\
        --workdir gs://BUCKET/pspnet50 --config.data.root=gs://BUCKET/CamVid \\
        --topology v5e:4x4 --slices 2 --image REGISTRY/segjax --queue tpus --dry_run

--dry_run prints what would be submitted, without it the engine's own tool submits it:

  gke       Kubernetes: a JobSet of TPU slices, queued by Kueue (kubectl)
  tpu_vm    TPU VMs: a queued resource and ssh to all its hosts (gcloud)
  skypilot  a managed job of SkyPilot, an example (sky)
  slurm     one task per GPU, submitted by submitit (sbatch)
  local     this machine, in one or several processes

Every engine starts experiments.train with the config and its overrides, or with --chain
experiments.chain.  It continues from its last checkpoint, so whatever stops it, being
started again is all it needs.
The workers read and write gs://BUCKET/.. themselves, or with --mount as a folder that
the engine mounts; slurm takes folders that all machines see.  docs/pods.md goes through
it step by step.

Exit codes: 0; 2 bad input or a missing tool; otherwise that of the tool.
"""

import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.launch import gke, local, skypilot, slurm, tpu_vm, tpus
from experiments.launch.job import (
    MOUNTS,
    Job,
    check_name,
    name_of,
    run_tool,
    to_yaml,
    worker_command,
)
from experiments.shared import chains, cli
from segjax import config as config_lib
from segjax import files, sharding
from segjax.errors import UserError

TPU_ENGINES = ("gke", "tpu_vm", "skypilot")
ENGINES = (*TPU_ENGINES, "slurm", "local")
SPOT_STEPS = 100  # that a lost Spot machine may cost
# Flags that have an effect with some engines only.
_ONLY = (
    dict.fromkeys(("topology", "slices", "spot", "env"), TPU_ENGINES)
    | dict.fromkeys(("image", "queue", "queue_quota", "service_account"), ("gke",))
    | dict.fromkeys(("namespace", "priority", "ttl_hours"), ("gke",))
    | dict.fromkeys(("nodes", "gpus_per_node", "hours", "sbatch"), ("slurm",))
    | {"zone": ("tpu_vm",), "processes": ("local",)}
    | {"max_restarts": ("gke", "tpu_vm", "slurm")}
)


def make_job(values: flags.FlagValues) -> Job:
    """Checks the flags and the config against the devices they ask for.

    Raises:
      UserError: something does not fit together.
    """
    for name, engines in _ONLY.items():
        if values[name].present and values.engine not in engines:
            raise UserError(
                f"--{name} has no effect with --engine={values.engine}, only with "
                f"{' and '.join(engines)}; leave it out"
            )
    on_tpu = values.engine in TPU_ENGINES
    in_bucket = values.workdir.startswith("gs://")
    if on_tpu:  # the bucket holds the compiled programs, too, beside the workdir
        in_bucket = bool(re.match("gs://[^/]+/+[^/]", values.workdir))
    if on_tpu != in_bucket and values.engine != "local":
        expected = "gs://BUCKET/FOLDER" if on_tpu else "a folder that all machines see"
        raise UserError(
            f"--workdir {values.workdir}: --engine {values.engine} expects {expected}"
        )
    if on_tpu and not values.topology:
        raise UserError(f"--engine {values.engine} needs --topology, such as v5e:4x4")
    found = tpus.parse(values.topology) if on_tpu else None
    if values.engine == "gke" and values.slices > 1 and found.hosts == 1:
        raise UserError(
            f"--slices {values.slices}: GKE joins slices of several hosts only; "
            f"{values.topology} has one"
        )
    if values.engine in ("tpu_vm", "skypilot") and not found.kind["runtime"]:
        raise UserError(
            f"--engine {values.engine}: {found.generation} has no TPU VMs: use gke"
        )
    devices = {
        "slurm": values.nodes * max(values.gpus_per_node, 1),
        "local": values.processes,
    }.get(values.engine, found and found.devices * values.slices)
    for config in _configs(values):
        config_lib.check(config)
        for field, parts in (
            ("batch_size", config.grad_accum_steps),
            ("eval_batch_size", 1),
        ):
            sharding.check_batch_size(
                config[field], field, grad_accum_steps=parts, devices=devices
            )
    extra = ["--distributed=on"] if on_tpu else []
    if on_tpu:
        _check_paths(values.config, values.mount)
        if not any("--compilation_cache" in argument for argument in sys.argv):
            # In the bucket, what one start has compiled serves the next one.
            beside = values.workdir.rstrip("/").rpartition("/")[0]
            extra.append(f"--compilation_cache={beside}/compiled")
    if values.spot and (steps := _spot_save_every(values)):
        extra.append(f"--config.save_every={steps}")
        cli.log(
            f"note: --spot: saves every {steps} steps instead of "
            f"{values.config.save_every}; --config.save_every sets another number"
        )
    workdir = values.workdir
    if not on_tpu:
        workdir = str(files.absolute(workdir))
    command, buckets = worker_command(
        sys.argv[1:],
        workdir,
        extra,
        "experiments.chain" if values.chain else "experiments.train",
        mount=values.mount,
    )
    if buckets and not on_tpu:
        raise UserError(
            f"--mount: --engine {values.engine} mounts no buckets; found "
            f"gs://{buckets[0]}"
        )
    name = values.job_name or name_of(cli.flag_value("config"), values.workdir)
    check_name(name)
    return Job(
        name=name,
        command=command,
        buckets=buckets,
        slice=found,
        slices=values.slices,
        spot=values.spot,
        max_restarts=values.max_restarts,
        environment=tuple(map(_variable, values.env)),
    )


def _spot_save_every(values: flags.FlagValues) -> int:
    """Steps between checkpoints on machines that may be lost; 0: as in the config."""
    given = "save_every" in config_flags.get_override_values(values["config"])
    return 0 if given or values.config.save_every <= SPOT_STEPS else SPOT_STEPS


def _configs(values: flags.FlagValues) -> list[ConfigDict]:
    """The config of the run, or those of the stages with --chain."""
    if not values.chain:
        return [values.config]
    given = config_lib.flatten(values.config)
    stages = chains.read(
        cli.flag_value("config"),
        {key: given[key] for key in config_flags.get_override_values(values["config"])},
        workdir=values.workdir,
    )
    return [stage.config for stage in stages]


def _check_paths(config: ConfigDict, mount: bool) -> None:
    """Raises UserError if the workers cannot see the data, or what they start from."""
    labels = config.data.pseudo_labels
    for field, value in (
        ("data.root", config.data.root),
        ("data.pseudo_labels", labels),
        ("init_from", config.init_from),
    ):
        there = value.startswith("gs://") or (mount and value.startswith(MOUNTS))
        # Other files of this folder are there, too.
        here = field == "data.root" or value.startswith(("/", "~"))
        if value and here and not there:
            raise UserError(
                f"--config.{field}={value}: the workers do not have this; copy it to "
                "the bucket and give gs://BUCKET/NAME"
            )
    if labels.startswith("gs://") and not mount:
        raise UserError(
            f"--config.data.pseudo_labels={labels}: masks are read from folders; give "
            "--mount"
        )


def _variable(text: str) -> tuple[str, str]:
    """("NAME", "VALUE") of an --env flag."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise UserError(f"--env {text}: expected NAME=VALUE")
    return name, value


def launch(job: Job, values: flags.FlagValues) -> int:
    """Submits a job, or prints it; the exit code."""
    if values.engine == "local":
        if values.dry_run:
            print(f"# {values.processes} processes of\n{job.shell()}")
            return 0
        return local.run(job, values.processes)
    if values.engine == "slurm":
        # Some options of sbatch have no value, such as exclusive.
        pairs = [option.partition("=") for option in values.sbatch]
        extra = {key: value if equals else True for key, equals, value in pairs}
        folder = Path(values.workdir).expanduser().absolute() / "slurm"
        options = slurm.parameters(
            job,
            values.nodes,
            gpus=values.gpus_per_node,
            hours=values.hours,
            extra=extra,
        )
        if values.dry_run:
            print(slurm.script(job, folder, options))
            return 0
        number = slurm.submit(job, folder, options)
        cli.log(f"submitted job {number}; its output goes to {folder}")
        return 0
    if values.engine == "gke":
        if not values.image:
            raise UserError("--engine gke needs --image; docs/pods.md says how to make")
        cluster = gke.Cluster(
            image=values.image,
            namespace=values.namespace,
            queue=values.queue,
            priority=values.priority,
            service_account=values.service_account,
            ttl_hours=values.ttl_hours,
        )
        documents = [gke.manifest(job, cluster)]
        if values.queue_quota:
            if not values.queue:
                raise UserError("--queue_quota needs --queue")
            queue = gke.queue_manifests(job, cluster, values.queue_quota)
            documents = queue + documents
        text, command = to_yaml(documents), ["kubectl", "apply", "-f"]
        if note := gke.spot_note(job):
            cli.log(f"note: {note}")
        if not values.dry_run and (done := gke.replace_finished(job, cluster)):
            cli.log(done)
    elif values.engine == "tpu_vm":
        if not values.zone:
            raise UserError("--engine tpu_vm needs --zone, such as us-west4-a")
        text, command = tpu_vm.script(job, values.zone), ["bash"]
    else:
        if job.slices > 1:
            raise UserError("--slices: --engine skypilot starts one slice")
        text, command = skypilot.task(job), ["sky", "jobs", "launch", "--yes"]
    if values.dry_run:
        print(text, end="")
        return 0
    return run_tool(command, text, "gcloud" if values.engine == "tpu_vm" else "")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this program."""
    to = {"flag_values": values}
    config_flags.DEFINE_config_file("config", None, "A file in configs/.", **to)
    string, integer = flags.DEFINE_string, flags.DEFINE_integer
    string("workdir", None, "gs://BUCKET/FOLDER, or a shared folder.", **to)
    flags.DEFINE_enum("engine", None, ENGINES, "What starts the workers.", **to)
    flags.DEFINE_bool("dry_run", False, "Print what would be submitted.", **to)
    text = "Train the chain that ends with this variant: experiments.chain."
    flags.DEFINE_bool("chain", False, text, **to)
    string("job_name", "", "Default: of the config and the workdir.", **to)
    integer("max_restarts", 20, "Restarts after which to give up.", 0, **to)
    string("topology", "", "TPU slice, such as v5e:4x4 or v4:2x2x4.", **to)
    integer("slices", 1, "TPU slices that train together.", 1, **to)
    flags.DEFINE_bool("spot", False, "Machines that may be taken away.", **to)
    string("image", "", "gke: container image with the code.", **to)
    string("queue", "", "gke: Kueue's LocalQueue; '': none.", **to)
    integer("queue_quota", 0, "gke: also make that queue; its chips.", 0, **to)
    string("service_account", "", "gke: allowed to use the buckets.", **to)
    string("namespace", "default", "gke: of Kubernetes.", **to)
    string("priority", "", "gke: Kueue's WorkloadPriorityClass; '': none.", **to)
    text = "gke: hours until a finished job and its logs are deleted; 0: never."
    flags.DEFINE_float("ttl_hours", 24, text, 0, **to)
    text = "NAME=VALUE for workers on TPUs, such as LIBTPU_INIT_ARGS=..; repeatable."
    flags.DEFINE_multi_string("env", [], text, **to)
    text = "gke, tpu_vm, skypilot: buckets are folders, through Cloud Storage FUSE."
    flags.DEFINE_bool("mount", False, text, **to)
    string("zone", "", "tpu_vm: such as us-west4-a.", **to)
    integer("nodes", 1, "slurm: machines.", 1, **to)
    integer("gpus_per_node", 8, "slurm: GPUs of each machine.", 0, **to)
    flags.DEFINE_float("hours", 24, "slurm: time limit; then queued again.", 0.1, **to)
    text = "slurm: further options of sbatch, such as partition=gpu; repeatable."
    flags.DEFINE_multi_string("sbatch", [], text, **to)
    integer("processes", 1, "local: processes on this machine.", 1, **to)
    required = ["config", "workdir", "engine"]
    flags.mark_flags_as_required(required, flag_values=values)


def main(argv) -> int:
    del argv
    return launch(make_job(flags.FLAGS), flags.FLAGS)


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    cli.run(main)
