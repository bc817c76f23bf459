"""TPU VMs: a queued resource, then ``ssh --worker=all``; a script for bash.

Source: docs.cloud.google.com/tpu/docs (queued resources, multislice) and the reference
of ``gcloud compute tpus``.
"""

import shlex

from experiments.launch.job import FATAL, MOUNTS, Job

STOPPED = 75  # of experiments.train: it has saved
BUSY = 76  # of the setup: another training runs on the machine
# Of the worker, instead of 1: that is also the code of a gcloud that cannot connect.
CRASHED = 70

# TPU VMs come with Python 3.10 and without gcsfuse.
SETUP = """\
set -eu
if ! flock --nonblock segjax.lock true; then
  echo "$(hostname): training is running here; stop it before you start it again"
  exit {busy}
fi
rm -rf segjax && mkdir segjax && tar -xzf segjax.tgz -C segjax
python3 -m pip install --quiet --user uv
test -d venv || python3 -m uv venv --quiet --python 3.11 venv
python3 -m uv pip install --quiet --python venv/bin/python --editable 'segjax[tpu,gcs]'
"""
GCSFUSE = """\
if ! command -v gcsfuse > /dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  apt=https://packages.cloud.google.com/apt
  curl -fsS $apt/doc/apt-key.gpg | sudo tee $key > /dev/null
  echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse
fi
"""
# To neither the shell nor the flock that wait for it. A chain passes the signal on to
# the stage that trains, for which a second one would mean not to save.
STOP = (
    "pkill -TERM -f '^[^ ]*python -m experiments.chain' || "
    "pkill -TERM -f '^[^ ]*python -m experiments.train'; "
    "flock --timeout 300 segjax.lock true"
)
SCRIPT = """\
#!/bin/bash
# Made by experiments.launch. It waits for the machines, trains, and when they are
# preempted waits for them again; training continues from its last checkpoint. Ctrl-C
# stops training on all hosts after it has saved.
set -euo pipefail

name={name}
zone={zone}
nodes=({nodes})
tpus="gcloud compute tpus"
delete="$tpus queued-resources delete $name --zone=$zone --force"

# The code: the files of this folder as they are now, committed or not.
archive=$(mktemp -d)/segjax.tgz
git ls-files --cached --others --exclude-standard -z |
  tar --create --gzip --null --files-from=- --ignore-failed-read --file=$archive

on_all_hosts() {{  # node, command
  $tpus tpu-vm ssh $1 --zone=$zone --worker=all --command="$2"
}}

state_of() {{
  $tpus queued-resources describe $name --zone=$zone --format='value(state.state)'
}}

get_machines() {{
  if ! state_of > /dev/null 2>&1; then
    $tpus queued-resources create $name --zone=$zone {resource}
  fi
  while true; do
    state=$(state_of) || state="no answer"  # waiting may take days
    echo "$name: $state"
    case $state in
      ACTIVE) return ;;
      SUSPENDED | FAILED)  # preempted, or never there: ask for them again
        $delete --quiet
        $tpus queued-resources create $name --zone=$zone {resource} ;;
    esac
    sleep 30
  done
}}

train() {{  # on all hosts of all slices at once; sets code
  for node in "${{nodes[@]}}"; do
    $tpus tpu-vm scp $archive $node: --zone=$zone --worker=all || return
    on_all_hosts $node {setup} || return
  done
  jobs=()
  for node in "${{nodes[@]}}"; do
    on_all_hosts $node {command} &
    jobs+=($!)
  done
  code=0
  for job in "${{jobs[@]}}"; do
    ended=0
    wait $job || ended=$?
    case $code in
      {fatal}) ;;  # the others have stopped because of this one
      *) if test $ended != 0; then code=$ended; fi ;;
    esac
  done
}}

stop() {{
  trap '' INT TERM
  echo "stopping: training saves on every host"
  for node in "${{nodes[@]}}"; do
    on_all_hosts $node {stop} || true
  done
  wait
  echo "stopped; run this again to continue, or delete the machines: $delete"
  exit {stopped}
}}
trap stop INT TERM

for ((start = 0; start <= {max_restarts}; start++)); do
  code=1
  get_machines
  train || code=$?
  case $code in
    0) echo "done; delete the machines: $delete"; exit 0 ;;
    {fatal}) echo "training cannot continue; its last lines say why"; exit $code ;;
    {busy}) exit $code ;;
  esac
  echo "stopped with code $code; starting again"
done
echo "gave up after {max_restarts} restarts; run this again to continue"
exit $code
"""


def script(job: Job, zone: str) -> str:
    """The script that gets the machines, installs, and trains on all of them."""
    options = [
        f"--accelerator-type={job.slice.accelerator_type}",
        f"--runtime-version={job.slice.kind['runtime']}",
    ]
    if job.slices > 1:
        options += [f"--node-count={job.slices}", f"--node-prefix={job.name}"]
        nodes = [f"{job.name}-{i}" for i in range(job.slices)]
    else:
        options.append(f"--node-id={job.name}")
        nodes = [job.name]
    if job.spot:
        options.append("--spot")
    setup = SETUP.format(busy=BUSY) + (GCSFUSE if job.buckets else "")
    for bucket in job.buckets:
        folder = f"{MOUNTS}/{bucket}"
        setup += (
            f"if ! mountpoint -q {folder}; then\n"
            f"  sudo mkdir -p {folder} && sudo chown $USER {folder}\n"
            "  gcsfuse --implicit-dirs --metadata-cache-negative-ttl-secs=0 "
            f"--rename-dir-limit=200000 {bucket} {folder}\n"
            "fi\n"
        )
    variables = "".join(f"{key}={shlex.quote(x)} " for key, x in job.environment)
    # The lock is free again when training has ended, whatever ended it.
    command = (
        f"cd segjax && env {variables}flock --nonblock ../segjax.lock "
        f"../venv/bin/{job.shell()} || {{ code=$?; "
        f"if test $code = 1; then exit {CRASHED}; else exit $code; fi; }}"
    )
    return SCRIPT.format(
        name=job.name,
        zone=shlex.quote(zone),
        nodes=" ".join(nodes),
        resource=" ".join(options),
        setup=shlex.quote(setup),
        command=shlex.quote(command),
        fatal=" | ".join(str(CRASHED if code == 1 else code) for code in FATAL),
        stop=shlex.quote(STOP),
        stopped=STOPPED,
        busy=BUSY,
        max_restarts=job.max_restarts,
    )
