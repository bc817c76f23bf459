"""What is submitted, checked against the published schemas and tables of engines."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import warnings

import jax
import jsonschema
import kill
import launch_schemas
import numpy as np
import pytest
import yaml
from absl import flags

from experiments.launch import __main__ as program
from experiments.launch import job, local, tpus
from experiments.shared import cli, provenance, training_run
from segjax import config as config_lib
from segjax import models, sharding
from segjax.errors import UserError

CONFIG = ("--config", f"{kill.ROOT}/configs/pspnet_camvid.py:pspnet50")
RUN = ("--workdir", "gs://bucket/runs/a", "--config.data.root=gs://data/CamVid")
BUCKET = (*RUN, "--mount")
SLICES = ("--topology=v5e:4x4", "--slices=2")
BATCHES = ("--config.batch_size=32", "--config.eval_batch_size=32")
JOB = (*CONFIG, *BUCKET, *SLICES, *BATCHES)
WORKER = [
    *("python", "-m", "experiments.train"),
    "--config=configs/pspnet_camvid.py:pspnet50",
    "--config.data.root=/gcs/data/CamVid",
    *BATCHES,
    "--workdir=/gcs/bucket/runs/a",
    "--distributed=on",
    "--compilation_cache=/gcs/bucket/runs/compiled",
]
SPOT_WORKER = [*WORKER, "--config.save_every=100"]


def launch(*arguments):
    """Exit code of the program, run in this process; prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["launch", *map(str, arguments)])
        values = flags.FlagValues()
        program.define_flags(values)
        with warnings.catch_warnings():
            # ml_collections loads config files in a way that Python will remove.
            warnings.simplefilter("ignore", DeprecationWarning)
            values(sys.argv)
        return program.launch(program.make_job(values), values)


def printed(*arguments):
    """What a dry run prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert launch(*arguments, "--dry_run") == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def manifests():
    out = printed(
        *("--engine=gke", *JOB, "--image=registry/segjax", "--queue=tpus"),
        *("--queue_quota=64", "--service_account=trainer", "--spot"),
        *("--namespace=research", "--priority=high", "--ttl_hours=2"),
        "--max_restarts=13",
        *("--env=LIBTPU_INIT_ARGS=--xla_a=1 --xla_b=2", "--env=A=b"),
    )
    return list(yaml.safe_load_all(out))


def test_jobset_and_queues_are_of_their_published_schemas(manifests):
    kinds = ["ResourceFlavor", "ClusterQueue", "LocalQueue", "JobSet"]
    assert [manifest["kind"] for manifest in manifests] == kinds
    assert sorted(launch_schemas.CRDS) == sorted(kinds)
    for manifest in manifests:
        queue = manifest["kind"] != "JobSet"
        api = "kueue.x-k8s.io/v1beta2" if queue else "jobset.x-k8s.io/v1alpha2"
        assert manifest["apiVersion"] == api
        jsonschema.validate(manifest, launch_schemas.CRDS[manifest["kind"]])
        jsonschema.validate(manifest["metadata"], launch_schemas.METADATA)


def test_schema_refuses_what_kubernetes_would(manifests):
    def pod(jobset):
        (job,) = jobset["spec"]["replicatedJobs"]
        return job["template"]["spec"]["template"]["spec"]

    for change in (
        lambda x: x["spec"].update(replicas=2),
        lambda x: x["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
        lambda x: x["spec"]["replicatedJobs"][0].pop("template"),
        lambda x: pod(x).update(hostNetworking=True),
        lambda x: pod(x)["containers"][0].pop("name"),
        lambda x: pod(x).update(terminationGracePeriodSeconds="120"),
    ):
        wrong = json.loads(json.dumps(manifests[-1]))
        change(wrong)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, launch_schemas.CRDS["JobSet"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "Not_a_label"}, launch_schemas.METADATA)


def test_jobset_runs_one_worker_per_host_of_every_slice(manifests):
    jobset = manifests[-1]
    (slices,) = jobset["spec"]["replicatedJobs"]
    workers = slices["template"]["spec"]
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    # Two slices of 4x4 = 16 chips, in 4 machines ct5lp-hightpu-4t each.
    assert slices["replicas"] == 2
    assert workers["parallelism"] == workers["completions"] == 4
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert jobset["metadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "tpus",
        "kueue.x-k8s.io/priority-class": "high",
    }
    assert jobset["metadata"]["namespace"] == "research"
    assert manifests[2]["metadata"]["namespace"] == "research"
    assert jobset["spec"]["ttlSecondsAfterFinished"] == 7200
    assert container["env"] == [
        {"name": "LIBTPU_INIT_ARGS", "value": "--xla_a=1 --xla_b=2"},
        {"name": "A", "value": "b"},
    ]
    assert pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert container["command"] == SPOT_WORKER
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {x["mountPath"]: volumes[x["name"]] for x in container["volumeMounts"]}
    # Batches of worker processes would overflow the 64 MB that a container has.
    assert mounted.pop("/dev/shm")["emptyDir"] == {"medium": "Memory"}
    buckets = {
        path: volume["csi"]["volumeAttributes"]["bucketName"]
        for path, volume in mounted.items()
    }
    assert buckets == {"/gcs/data": "data", "/gcs/bucket": "bucket"}
    # A folder that one host makes must not stay absent for the others.
    for volume in mounted.values():
        options = volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
        assert "metadata-cache:negative-ttl-secs:0" in options
    annotations = workers["template"]["metadata"]["annotations"]
    assert annotations["gke-gcsfuse/volumes"] == "true"
    assert annotations["gke-gcsfuse/memory-limit"] == "0"
    # Longest name of a pod: NAME-slice-SLICE-HOST-xxxxx, at most 63 characters.
    assert len(f"{jobset['metadata']['name']}-slice-1-3-xxxxx") <= 63


def test_jobset_restarts_only_on_exit_codes_that_a_restart_can_cure(manifests):
    from experiments import train

    jobset = manifests[-1]
    workers = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    disrupted, rule = workers["podFailurePolicy"]["rules"]
    # The first rule that fits counts: evicted pods may end with any code.
    assert disrupted["action"] == "Count"
    assert disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["containerName"] == "train"
    fatal = rule["onExitCodes"]["values"]
    assert rule["onExitCodes"]["operator"] == "In"
    # 1: an exception that nobody expected, such as an ImportError.
    assert fatal == [1, cli.BAD_INPUT, train.DIVERGED]
    assert {train.STOPPED, cli.LOST} < set(job.CURABLE) and not set(fatal) & set(
        job.CURABLE
    )
    # Such a Job fails with the reason PodFailurePolicy, every other with
    # BackoffLimitExceeded, for which the default is to restart.
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 13
    # A rule on exit codes needs pods that are not restarted in place.
    assert workers["template"]["spec"]["restartPolicy"] == "Never"
    assert workers["backoffLimit"] == 0


# Topology: accelerator type, chips, hosts. Tables of docs.cloud.google.com/tpu/docs
# (v4, v5e, v5p, v6e) and of GKE's "Plan TPUs": nodes of 4 chips from 16 chips on.
PUBLISHED = {
    "v4:2x2x1": ("v4-8", 4, 1),
    "v4:2x2x4": ("v4-32", 16, 4),
    "v4:4x4x4": ("v4-128", 64, 16),
    "v5e:1x1": ("v5litepod-1", 1, 1),
    "v5e:2x2": ("v5litepod-4", 4, 1),
    "v5e:2x4": ("v5litepod-8", 8, 1),
    "v5e:4x4": ("v5litepod-16", 16, 4),
    "v5e:16x16": ("v5litepod-256", 256, 64),
    "v5p:2x2x1": ("v5p-8", 4, 1),
    "v5p:2x4x4": ("v5p-64", 32, 8),
    "v5p:16x16x24": ("v5p-12288", 6144, 1536),
    "v6e:4x4": ("v6e-16", 16, 4),
    "v6e:8x16": ("v6e-128", 128, 32),
    "tpu7x:2x2x1": ("tpu7x-8", 4, 1),
    "tpu7x:4x4x4": ("tpu7x-128", 64, 16),
}


@pytest.mark.parametrize("topology", PUBLISHED)
def test_chips_and_hosts_are_those_of_the_published_tables(topology):
    found = tpus.parse(topology)
    assert (found.accelerator_type, found.chips, found.hosts) == PUBLISHED[topology]
    assert found.hosts * found.chips_per_host == found.chips


@pytest.mark.parametrize(
    "topology",
    ["v5e", "4x4", "v3:4x4", "v5e:4x5", "v4:4x4", "v5p:8x4x4", "v5p:16x24x24"],
)
def test_topologies_that_nobody_sells_are_refused(topology):
    with pytest.raises(UserError, match=f"--topology={topology}"):
        tpus.parse(topology)


def tpu_vm_script(tmp_path, gcloud, *options):
    """The script of two slices named a, and an environment with this `gcloud`."""
    out = printed(
        "--engine=tpu_vm", *JOB, "--zone=us-west4-a", "--job_name=a", *options
    )
    script = tmp_path / "script.sh"
    script.write_text(out.replace("sleep 30", "sleep 0.1"))
    tool = tmp_path / "gcloud"
    tool.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$*" >> {tmp_path / "calls"}\n{gcloud}\n'
    )
    tool.chmod(0o755)
    return script, os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


ACTIVE = 'case "$*" in *describe*) echo ACTIVE;; esac\n'


def test_tpu_vm_script_is_bash_and_trains_on_all_hosts_of_all_slices(tmp_path):
    """Run with a gcloud that writes down how it was called."""
    made = tmp_path / "made"
    gcloud = (
        f'case "$*" in *describe*) test -f {made} || exit 1; echo ACTIVE;;\n'
        f"*create*) touch {made};;\n"
        f"*scp*) for x; do case $x in *.tgz) cp $x {tmp_path}/code.tgz;; esac; done;;\n"
        '*"ssh a-0 "*"flock --nonblock ../"*) exit 3;;\n'
        '*"ssh a-1 "*"flock --nonblock ../"*) exit 75;; esac'  # because of the other
    )
    script, env = tpu_vm_script(tmp_path, gcloud, "--spot", "--env=A=b c")
    how = dict(cwd=kill.ROOT, env=env, capture_output=True, text=True, check=False)
    done = subprocess.run(["bash", script], **how)
    assert done.returncode == 3 and "training cannot continue" in done.stdout
    found = (tmp_path / "calls").read_text()
    create = next(line for line in found.splitlines() if " create " in line)
    for option in (
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"),
        *("--node-count=2", "--node-prefix=a", "--spot", "--zone=us-west4-a"),
    ):
        assert option in create.split()
    for node in ("a-0", "a-1"):
        train = f"tpu-vm ssh {node} --zone=us-west4-a --worker=all --command=cd segjax"
        train += " && env A='b c' flock --nonblock ../segjax.lock ../venv/bin/"
        assert f"{train}{' '.join(SPOT_WORKER)} || {{ code=$?; if test" in found
        assert f"scp {found.partition('tpu-vm scp ')[2].split()[0]} {node}:" in found
    assert "gcsfuse --implicit-dirs --metadata-cache-negative-ttl-secs=0" in found
    # What is on disk is shipped, whether it is committed or not; nothing ignored is.
    with tarfile.open(tmp_path / "code.tgz") as archive:
        names = set(archive.getnames())
    assert {"setup.py", "segjax/config.py", "experiments/train.py"} <= names
    assert not any(name.startswith((".venv", ".git/")) for name in names)


def test_tpu_vm_script_starts_again_after_a_preemption(tmp_path):
    count = tmp_path / "count"
    gcloud = (
        f'case "$*" in *describe*) echo asked >> {count}.asked\n'
        f"if test $(wc -l < {count}.asked) = 2; then exit 1; fi  # a lost connection\n"
        f"if grep -q lost {count} 2> /dev/null;\n"
        "then echo SUSPENDED; else echo ACTIVE; fi;;\n"
        f"*create*) echo new > {count};;\n"
        f'*"ssh a-0 "*"flock --nonblock ../"*) test -f {count} && exit 0\n'
        f"echo lost > {count}; exit 255;; esac"
    )
    script, env = tpu_vm_script(tmp_path, gcloud)
    how = dict(cwd=kill.ROOT, env=env, capture_output=True, text=True, check=False)
    done = subprocess.run(["bash", script], **how, timeout=60)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert calls.index(" delete a ") < calls.index(" create a ")
    assert "starting again" in done.stdout and "done; delete" in done.stdout


def test_tpu_vm_script_saves_on_ctrl_c_and_leaves_a_running_training_alone(tmp_path):
    began = tmp_path / "began"
    gcloud = ACTIVE + (
        'case "$*" in *"flock --nonblock ../"*) touch '
        f"{began}; while ! grep -q pkill {tmp_path / 'calls'}; do sleep 0.1; done\n"
        "exit 75;; esac"
    )
    script, env = tpu_vm_script(tmp_path, gcloud)
    how = dict(cwd=kill.ROOT, env=env, stdout=subprocess.PIPE, text=True)
    # Shells start jobs in the background with SIGINT ignored, which no trap undoes.
    command = ["env", "--default-signal=INT", "bash", script]
    with subprocess.Popen(command, **how) as process:
        deadline = time.monotonic() + 30
        while not began.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and "training saves on every host" in out
    calls = (tmp_path / "calls").read_text()
    for node in ("a-0", "a-1"):
        assert re.search(
            rf"ssh {node} .*pkill -TERM -f '.* -m experiments.chain' \|\|", calls
        )
    pattern = re.findall(r"pkill -TERM -f '([^']+train)'", calls)[0]
    assert re.search(pattern, "../venv/bin/python -m experiments.train --config=x")
    for shell in ("bash -c", "flock ../segjax.lock"):  # they tell its exit code
        line = f"{shell} ../venv/bin/python -m experiments.train"
        assert not re.search(pattern, line)
    # The setup refuses to replace the code under a training that runs.
    setup = calls.partition("--command=set -eu")[2].partition("rm -rf")[0]
    setup = f"cd {tmp_path}\nset -eu{setup}"
    assert subprocess.run(["bash", "-c", setup], check=False).returncode == 0
    held = f"cd {tmp_path}; exec 9> segjax.lock; flock 9; {setup}"
    done = subprocess.run(["bash", "-c", held], capture_output=True, check=False)
    assert done.returncode == 76 and b"training is running here" in done.stdout


@pytest.mark.parametrize(
    "status, applied",
    [(None, True), ("Completed", True), ("Failed", True), ("", False)],
)
def test_gke_replaces_a_finished_jobset_and_spares_a_running_one(
    status, applied, tmp_path, monkeypatch, capsys
):
    calls = tmp_path / "calls"
    state = {"status": {"terminalState": status} if status else {}}
    answer = "" if status is None else json.dumps(state)
    (tmp_path / "answer").write_text(answer)
    tool = tmp_path / "kubectl"
    tool.write_text(
        f'#!/bin/sh\necho "$*" >> {calls}\n'
        f'case "$1" in get) cat {tmp_path / "answer"};; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    options = ("--engine=gke", *JOB, "--image=x", "--job_name=a", "--namespace=lab")
    if not applied:
        with pytest.raises(UserError, match="--job_name a: a JobSet .* is queued or"):
            launch(*options)
    else:
        assert launch(*options) == 0
    found = [line.split()[0] for line in calls.read_text().splitlines()]
    delete = ["delete"] if status else []
    assert found == (["get", *delete, "apply"] if applied else ["get"])
    assert ("replaced the JobSet a" in capsys.readouterr().err) == bool(delete)


def test_skypilot_task_is_of_its_published_schema():
    slice_ = ("--topology=v4:2x2x4", "--spot", "--env=A=b")
    out = printed("--engine=skypilot", *CONFIG, *BUCKET, *BATCHES, *slice_)
    task = yaml.safe_load(out)
    jsonschema.validate(task, launch_schemas.SKYPILOT)
    assert task["resources"]["accelerators"] == "tpu-v4-32"
    assert task["resources"]["job_recovery"] == {
        "max_restarts_on_errors": 0,
        "recover_on_exit_codes": list(job.CURABLE),
    }
    assert task["file_mounts"]["/gcs/bucket"]["source"] == "gs://bucket"
    assert task["envs"] == {"A": "b"}
    assert task["run"] == f"exec ~/venv/bin/{' '.join(SPOT_WORKER)}\n"


def test_sbatch_script_asks_for_gpus_and_for_time_to_save(
    tmp_path,
):
    pytest.importorskip("submitit")
    out = printed(
        *("--engine=slurm", *CONFIG, *BATCHES, "--workdir", tmp_path, "--nodes=2"),
        *("--gpus_per_node=8", "--hours=12", "--sbatch=partition=gpu"),
        "--sbatch=exclusive",
    )
    options = {line[8:] for line in out.splitlines() if line.startswith("#SBATCH ")}
    expected = {
        *("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=720"),
        *("--signal=USR2@120", "--requeue", "--partition=gpu", "--exclusive"),
    }
    assert expected <= options
    assert f"srun --unbuffered --output {tmp_path}/slurm/%j_%t_log.out" in out


def test_slurm_job_is_submitted_with_the_same_script_and_requeued(
    tmp_path, monkeypatch, capsys
):
    """Submitted to an sbatch that keeps the script, and run by an srun on this machine.

    The training is replaced by one that was stopped and saved.
    """
    pytest.importorskip("submitit")
    cloudpickle = pytest.importorskip("cloudpickle")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "sbatch": f"cp $1 {tmp_path}/submitted.sh; echo Submitted batch job 42",
        # Without its options: --unbuffered, --output FILE, --error FILE.
        "srun": 'shift 5; exec "$@"',
        "scontrol": f'echo "$@" > {tmp_path}/scontrol',
        "python": "exit 75",
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "run"
    arguments = ("--engine=slurm", *CONFIG, *BATCHES, "--workdir", workdir)
    assert launch(*arguments, "--gpus_per_node=1") == 0
    assert "submitted job 42" in capsys.readouterr().err
    script = (tmp_path / "submitted.sh").read_text()
    assert printed(*arguments, "--gpus_per_node=1").startswith(script)

    with open(workdir / "slurm" / "42_submitted.pkl", "rb") as file:
        submission = cloudpickle.load(file)
    command, folder, _ = submission.args
    assert folder == str(workdir)
    assert command[1:3] == ["-m", "experiments.train"] and WORKER[3] in command
    submission.args = ([str(tools / "python"), *command[1:]], *submission.args[1:])
    with open(workdir / "slurm" / "42_submitted.pkl", "wb") as file:
        cloudpickle.dump(submission, file)
    slurm = {"SLURM_JOB_ID": "42", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    env = os.environ | slurm | {"PYTHONPATH": str(kill.ROOT)}
    subprocess.run(["bash", tmp_path / "submitted.sh"], env=env, check=True)
    assert (tmp_path / "scontrol").read_text() == "requeue 42\n"


def test_a_mesh_of_slices_trains_as_one_device_does():
    config = config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (4,)},
        batch_size=8,
    )
    model = models.build(config, 3)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 16, 16, 3), np.uint8),
        "label": rng.integers(0, 3, (8, 16, 16), np.uint8),
    }
    losses = {}
    for slices, devices in ((1, 1), (2, 4)):
        mesh = sharding.make_mesh(jax.devices()[:devices], slices)
        init = training_run.make_init(config, model, image_shape=(16, 16, 3), mesh=mesh)
        state, on_devices = init(), sharding.put(batch, mesh)
        step = training_run.make_train_step(
            config, model, params=state.params, mesh=mesh
        )
        losses[slices] = []
        for _ in range(3):
            state, metrics = step(state, on_devices)
            losses[slices].append(float(metrics["loss"]))
    assert mesh.shape == {"slice": 2, "data": 2}
    rows = {
        shard.index[0].indices(8) for shard in on_devices["image"].addressable_shards
    }
    assert rows == {(0, 2, 1), (2, 4, 1), (4, 6, 1), (6, 8, 1)}
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-5)
    assert losses[1][2] < losses[1][0]


def test_a_mesh_of_real_slices_keeps_each_in_a_row():
    pytest.importorskip("libtpu")
    devices = tpus.compile_only_devices(tpus.parse("v5e:4x4"), 2)
    mesh = sharding.make_mesh(devices)
    assert mesh.shape == {"slice": 2, "data": 16}
    for row in mesh.devices:
        assert len({device.slice_index for device in row}) == 1
    assert sharding.make_mesh(devices[:16]).shape == {"data": 16}


def test_gke_runs_tpu7x_and_counts_both_halves_of_its_chips():
    gke = ("--engine=gke", *CONFIG, *BUCKET, "--topology=tpu7x:2x2x2", "--image=x")
    manifest = yaml.safe_load(printed(*gke, *BATCHES))
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu7x",
        "cloud.google.com/gke-tpu-topology": "2x2x2",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    with pytest.raises(UserError, match="batch_size=8 does not split evenly over 16"):
        launch(*gke, "--config.batch_size=8")
    with pytest.raises(UserError, match="tpu7x has no TPU VMs: use gke"):
        launch("--engine=tpu_vm", *gke[1:-1], *BATCHES, "--zone=z")


@pytest.mark.parametrize(
    "options, steps",
    [
        (["--config.save_every=500"], ["500"]),
        (["--config.save_every=20"], ["20"]),
        (["--nospot"], []),
        ([], ["100"]),
    ],
)
def test_spot_saves_often_unless_told_otherwise(options, steps, capsys):
    out = printed("--engine=gke", *JOB, "--image=x", "--spot", *options)
    assert re.findall(r"--config.save_every=(\d+)", out) == steps
    note = re.search(r"saves every 100 steps instead of \d+", capsys.readouterr().err)
    assert bool(note) == (steps == ["100"])


BAD = {
    "config.batch_size=16 does not split evenly over 32 devices": (
        *("--engine=gke", *CONFIG, *BUCKET, *SLICES, "--image=x"),
    ),
    "--engine gke expects gs://BUCKET/FOLDER": (
        *("--engine=gke", *CONFIG, "--workdir=/tmp/a", *SLICES),
    ),
    "--engine slurm expects a folder that all machines see": (
        *("--engine=slurm", *CONFIG, *BUCKET),
    ),
    "--engine gke needs --image": ("--engine=gke", *JOB),
    "--engine tpu_vm needs --zone": ("--engine=tpu_vm", *JOB),
    "--slices 2: GKE joins slices of several hosts only; v5e:2x2 has one": (
        *("--engine=gke", *CONFIG, *BUCKET, *BATCHES, "--image=x"),
        *("--topology=v5e:2x2", "--slices=2"),
    ),
    "--job_name a; rm -r b: expected at most 40 small letters": (
        *("--engine=tpu_vm", *JOB, "--zone=z", "--job_name=a; rm -r b"),
    ),
    "--engine skypilot starts one slice": ("--engine=skypilot", *JOB),
    "needs --topology": ("--engine=gke", *CONFIG, *BUCKET),
    "kubectl not found": ("--engine=gke", *JOB, "--image=x"),
    "--env LIBTPU_INIT_ARGS: expected NAME=VALUE": (
        *("--engine=gke", *JOB, "--image=x", "--env=LIBTPU_INIT_ARGS"),
    ),
    "--config.data.root=/data/CamVid: the workers do not have this": (
        *("--engine=gke", *CONFIG, *BUCKET[:2], "--config.data.root=/data/CamVid"),
        *(*SLICES, *BATCHES, "--image=x"),
    ),
    "--config.data.root=/gcs/x: the workers do not have this": (
        *("--engine=gke", *CONFIG, *RUN[:2], "--config.data.root=/gcs/x"),
        *(*SLICES, *BATCHES, "--image=x"),
    ),
    "--config.init_from=/w.safetensors: the workers do not have this": (
        *("--engine=gke", *JOB, "--image=x", "--config.init_from=/w.safetensors"),
    ),
    "--config.data.pseudo_labels=gs://b/x: masks are read from folders": (
        *("--engine=gke", *CONFIG, *RUN, *SLICES, *BATCHES, "--image=x"),
        *("--config.data.supervision=pseudo", "--config.data.pseudo_labels=gs://b/x"),
    ),
    "--workdir gs://bucket/: --engine gke expects gs://BUCKET/FOLDER": (
        *("--engine=gke", *CONFIG, "--workdir=gs://bucket/", *SLICES),
    ),
    "--spot has no effect with --engine=slurm, only with gke and tpu_vm and sky": (
        *("--engine=slurm", *CONFIG, "--workdir=/a", "--spot"),
    ),
    "--max_restarts has no effect with --engine=local": (
        *("--engine=local", *CONFIG, "--workdir=/a", "--max_restarts=2"),
    ),
    "gcloud not found": ("--engine=tpu_vm", *JOB, "--zone=z"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_and_missing_tools_are_told(message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=message):
        launch(*BAD[message])
    assert not capsys.readouterr().out


def test_the_program_fails_with_one_line_and_helps():
    command = [sys.executable, "-m", "experiments.launch"]
    how = dict(cwd=kill.ROOT, capture_output=True, text=True, check=False)
    done = subprocess.run([*command, "--engine=gke", *CONFIG, *BUCKET], **how)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line == "error: --engine gke needs --topology, such as v5e:4x4"
    done = subprocess.run([*command, "--help"], **how)
    for text in ("--[no]dry_run", "--topology", "gs://BUCKET", "Exit codes:"):
        assert text in done.stdout


def test_worker_command_keeps_the_config_and_nothing_else():
    command, buckets = job.worker_command(
        ["--dry_run", "--config", "configs/quickstart.py", "--config.seed", "3"]
        + ["--noconfig.augment.rot90", "--config.data.root=gs://b/x", "--image=y"],
        "gs://c/runs",
        mount=True,
    )
    assert command[3:] == (
        *("--config=configs/quickstart.py", "--config.seed=3"),
        *("--noconfig.augment.rot90", "--config.data.root=/gcs/b/x"),
        "--workdir=/gcs/c/runs",
    )
    assert buckets == ("b", "c")
    assert job.worker_command(["--config.data.root=gs://b/x"], "gs://c/runs") == (
        (*command[:3], "--config.data.root=gs://b/x", "--workdir=gs://c/runs"),
        (),
    )
    with pytest.raises(UserError, match="the workers have the files of"):
        job.worker_command(["--config=/etc/other.py"], "gs://c/runs")


def test_a_chain_is_started_by_its_last_stage_and_every_stage_is_checked():
    arguments = ("--engine=local", "--workdir=/tmp/chain", "--chain", "--processes=1")
    config = "configs/dilation_camvid.py"
    line = printed(*arguments, "--config", f"{config}:joint", "--config.seed=3")
    assert (
        f"python -m experiments.chain --config={config}:joint --config.seed=3" in line
    )
    with pytest.raises(UserError, match="'front_end' starts from no other variant"):
        launch(*arguments, "--config", f"{config}:front_end")
    # The batch of the first stage is 8, that of the last one 1.
    whole = (*arguments, "--config", f"{config}:joint", "--config.batch_size=4")
    with pytest.raises(UserError, match=r"batch_size=4 does not split evenly over 3"):
        launch(*whole, "--processes=3")


@pytest.mark.parametrize(
    "config, workdir, name",
    [
        ("configs/unet_camvid.py", "gs://b/Run_7", "unet-camvid-run-7"),
        ("configs/3d.py:x", "/runs/a", "run-3d-a"),
        (f"configs/{'x' * 60}.py", "/a", "x" * 33),
        ("configs/réseau.py", "/a", "r-seau-a"),
        ("網.py", "/網", "run"),
    ],
)
def test_names_are_labels_that_leave_room_for_those_of_pods(config, workdir, name):
    found = job.name_of(config, workdir)
    assert re.fullmatch(rf"{name}-[0-9a-f]{{6}}", found)
    job.check_name(found)
    jsonschema.validate(found, launch_schemas.LABEL)


def test_rows_of_a_sweep_have_names_of_their_own():
    rows = ("gs://b/bins=1-f678fff8/seed0", "gs://b/bins=6-2827c0bb/seed0")
    assert len({job.name_of("configs/sweeps/bins.py", row) for row in rows}) == 2
    assert job.name_of("x.py", "gs://b/a/") == job.name_of("x.py", "gs://b/a")


def test_training_says_its_versions_where_there_is_no_git(monkeypatch, tmp_path):
    """As in the slim container images that docs/pods.md builds upon."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.versions()["git_commit"] == "not a git checkout"


@pytest.mark.slow
def test_local_engine_trains_in_two_processes(tmp_path):
    run = tmp_path / "run"
    args = {"total_steps": 2, "eval_every": 0, "eval_images": 0}
    command = kill.command(run, tmp_path, **args)
    command[command.index("experiments.train")] = "experiments.launch"
    log = kill.finish(kill.start([*command, "--engine=local", "--processes=2"]))
    assert "process 0/2" in log and "process 1/2" in log and "done" in log
    assert sorted(kill.losses(run)) == [1, 2]


def test_local_engine_stops_all_processes_and_tells_their_code(tmp_path):
    worker = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "(pathlib.Path(sys.argv[1]) / sys.argv[-1][-1]).touch()\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import sys\n"
        "from experiments.launch import job, local\n"
        "command = ('python', '-c', sys.argv[1], sys.argv[2])\n"
        "sys.exit(local.run(job.Job('a', command, (), None, 1, False, 0), 2))\n"
    )
    with kill.start([sys.executable, "-c", parent, worker, str(tmp_path)]) as process:
        deadline = time.monotonic() + 60
        while sorted(path.name for path in tmp_path.iterdir()) != ["0", "1"]:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        kill.finish(process, code=75)


@pytest.mark.parametrize(
    "ends, expected",
    [
        (("_exit(75)", "_exit(2)"), 2),
        (("_exit(0)", "_exit(75)"), 75),
        (("abort()", "_exit(0)"), 134),
    ],
)
def test_local_engine_tells_the_code_that_no_restart_can_cure(ends, expected):
    """Process 1 has bad input, process 0 stops because of it; or it is killed."""
    first, second = (f"os.{end}" for end in ends)
    worker = f"import os, sys\nif sys.argv[-1][-1] == '0': {first}\n{second}"
    task = job.Job("a", ("python", "-c", worker), (), None, 1, False, 0)
    assert local.run(task, 2) == expected


@pytest.mark.parametrize("code, expected", [(0, 0), (1, 70), (3, 3), (75, 75)])
def test_tpu_vm_worker_tells_a_crash_from_a_gcloud_that_cannot_connect(
    code, expected, tmp_path
):
    """gcloud exits with 1 itself, after which the script starts again."""
    out = printed("--engine=tpu_vm", *JOB, "--zone=z")
    (line,) = (x for x in out.splitlines() if "on_all_hosts $node 'cd segjax" in x)
    (tmp_path / "segjax").mkdir()
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {code}\n")
    python.chmod(0o755)
    (command,) = re.findall(r"'(cd segjax.*)'", line)
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False)
    assert done.returncode == expected
    fatal = re.search(r"^ +([\d |]+)\) echo .training cannot continue", out, re.M)
    assert fatal[1] == "70 | 2 | 3"


@pytest.mark.parametrize("engine", program.TPU_ENGINES)
def test_workers_use_buckets_themselves(engine):
    """Unless they are to be mounted."""
    flag = {"gke": ["--image=x"], "tpu_vm": ["--zone=z"]}.get(engine, [])
    flags = ("--topology=v5e:4x4", *flag)
    out = printed(f"--engine={engine}", *CONFIG, *RUN, *BATCHES, *flags)
    assert "--workdir=gs://bucket/runs/a" in out and "/gcs/" not in out
    assert "fuse" not in out.lower() and "--compilation_cache=gs://bucket/runs" in out
