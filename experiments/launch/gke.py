"""Google Kubernetes Engine: a JobSet of TPU slices, queued by Kueue.

Sources: the JobSet API jobset.x-k8s.io/v1alpha2 (github.com/kubernetes-sigs/jobset),
batch/v1 Jobs with a podFailurePolicy (kubernetes.io/docs/concepts/workloads/
controllers/job), the Kueue API kueue.x-k8s.io/v1beta2 (kueue.sigs.k8s.io; served since
Kueue 0.14, and alone since 0.20), and GKE's labels of TPU nodes and annotations of
mounted buckets (docs.cloud.google.com).
"""

import json
import subprocess
from typing import NamedTuple

from experiments.launch.job import (
    FATAL,
    GRACE_SECONDS,
    MOUNTS,
    SPOT_GRACE_SECONDS,
    Job,
)
from segjax.errors import UserError

CODE = "/segjax"  # folder of the image that holds the code
# A host must see at once what another host has written, so nothing that was absent is
# remembered as absent. In a bucket without a hierarchical namespace, folders are
# renamed file by file.
FUSE_OPTIONS = (
    "implicit-dirs,metadata-cache:negative-ttl-secs:0,rename-dir-limit:200000"
)


class Cluster(NamedTuple):
    """Where and as what a JobSet runs."""

    image: str
    """Container image with Python, segjax's requirements and the code in ``CODE``."""
    namespace: str = "default"
    queue: str = ""
    """The LocalQueue of Kueue; "": none."""
    priority: str = ""
    """A WorkloadPriorityClass of Kueue; "": none."""
    service_account: str = ""
    """Of Kubernetes, allowed to use the buckets; "": the default one."""
    ttl_hours: float = 24
    """After which a finished JobSet and its logs are deleted; 0: never."""


def manifest(job: Job, cluster: Cluster) -> dict:
    """The JobSet of a job: one Job per slice, one pod per host.

    A pod that ends with 0 is done.  If one fails with a code of ``FATAL``, the JobSet
    fails; otherwise all pods are started again, up to ``max_restarts`` times, and
    training continues from its last checkpoint.
    """
    # Each slice gets a node pool of its own: all its hosts, and nobody else's.
    exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    metadata = {
        "name": job.name,
        "namespace": cluster.namespace,
        "annotations": {exclusive: "cloud.google.com/gke-nodepool"},
    }
    labels = {
        "kueue.x-k8s.io/queue-name": cluster.queue,
        "kueue.x-k8s.io/priority-class": cluster.priority,
    }
    if labels := {key: value for key, value in labels.items() if value}:
        metadata["labels"] = labels
    workers = {
        "parallelism": job.slice.hosts,
        "completions": job.slice.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # the hosts of a slice can only start together
        "podFailurePolicy": {
            "rules": [
                # Whatever the exit code of a pod that was evicted or preempted.
                {
                    "action": "Count",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "train",
                        "operator": "In",
                        "values": list(FATAL),
                    },
                },
            ]
        },
        "template": _pod(job, cluster),
    }
    ends = {"ttlSecondsAfterFinished": round(cluster.ttl_hours * 3600)}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            **(ends if cluster.ttl_hours else {}),
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "rules": [
                    {
                        "name": "noRestartCanCureIt",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": job.slices, "template": {"spec": workers}}
            ],
        },
    }


def _pod(job: Job, cluster: Cluster) -> dict:
    container = {
        "name": "train",
        "image": cluster.image,
        "workingDir": CODE,
        "command": list(job.command),
        # Ports of the TPU runtime: between the hosts of a slice, and for its metrics.
        "ports": [{"containerPort": 8471}, {"containerPort": 8431}],
        "resources": {"limits": {"google.com/tpu": job.slice.chips_per_host}},
        # Through it, worker processes hand over batches; 64 MB is the default.
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    spec = {
        "restartPolicy": "Never",  # demanded by podFailurePolicy
        "terminationGracePeriodSeconds": GRACE_SECONDS,  # of a delete or a drain
        "nodeSelector": _node_labels(job),
        "containers": [container],
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
    }
    pod = {"spec": spec}
    if cluster.service_account:
        spec["serviceAccountName"] = cluster.service_account
    if job.environment:
        container["env"] = [
            {"name": name, "value": value} for name, value in job.environment
        ]
    if job.slices > 1:
        # Slices talk to each other through the network of the hosts.
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if job.spot:
        spec["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
        spec["tolerations"] = [
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        ]
    if job.buckets:
        # 0: no limit. Those that are set by default are too small for checkpoints.
        limits = ("cpu-limit", "memory-limit", "ephemeral-storage-limit")
        annotations = {f"gke-gcsfuse/{limit}": "0" for limit in limits}
        pod["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"} | annotations}
        volumes = [f"bucket-{i}" for i in range(len(job.buckets))]
        container["volumeMounts"] += [
            {"name": volume, "mountPath": f"{MOUNTS}/{bucket}"}
            for volume, bucket in zip(volumes, job.buckets)
        ]
        spec["volumes"] += [
            {
                "name": volume,
                "csi": {
                    "driver": "gcsfuse.csi.storage.gke.io",
                    "volumeAttributes": {
                        "bucketName": bucket,
                        "mountOptions": FUSE_OPTIONS,
                    },
                },
            }
            for volume, bucket in zip(volumes, job.buckets)
        ]
    return pod


def _node_labels(job: Job) -> dict:
    return {
        "cloud.google.com/gke-tpu-accelerator": job.slice.kind["gke"],
        "cloud.google.com/gke-tpu-topology": job.slice.topology,
    }


def queue_manifests(job: Job, cluster: Cluster, quota: int) -> list[dict]:
    """What an administrator applies once: a queue for slices of this topology.

    Args:
      job: whose topology the queue serves.
      cluster: its queue names all three objects.
      quota: chips that jobs of the queue may use at a time.
    """
    api, queue = "kueue.x-k8s.io/v1beta2", cluster.queue
    resource = {"name": "google.com/tpu", "nominalQuota": quota}
    flavor = {"name": queue, "resources": [resource]}
    return [
        {
            "apiVersion": api,
            "kind": "ResourceFlavor",
            "metadata": {"name": queue},
            "spec": {"nodeLabels": _node_labels(job)},
        },
        {
            "apiVersion": api,
            "kind": "ClusterQueue",
            "metadata": {"name": queue},
            "spec": {
                "namespaceSelector": {},
                "resourceGroups": [
                    {"coveredResources": ["google.com/tpu"], "flavors": [flavor]}
                ],
            },
        },
        {
            "apiVersion": api,
            "kind": "LocalQueue",
            "metadata": {"name": queue, "namespace": cluster.namespace},
            "spec": {"clusterQueue": queue},
        },
    ]


def replace_finished(job: Job, cluster: Cluster) -> str:
    """Makes room for a JobSet: deletes one of the same name that has ended.

    ``kubectl apply`` would leave a finished JobSet as it is and start nothing, and
    fields of a running one cannot be changed.

    Returns:
      What was done, in one line; "" if there was no JobSet of that name.

    Raises:
      UserError: it has not ended, or kubectl fails.
    """
    where = ("jobset", job.name, "--namespace", cluster.namespace)
    found = _kubectl("get", *where, "--ignore-not-found", "--output=json")
    if not found.strip():
        return ""
    try:
        ended = json.loads(found).get("status", {}).get("terminalState", "")
    except ValueError as error:
        raise UserError(f"kubectl get jobset {job.name} printed no JSON") from error
    if ended not in ("Completed", "Failed"):
        raise UserError(
            f"--job_name {job.name}: a JobSet of that name is queued or running; "
            "delete it first (it saves, and the same launch continues): kubectl delete "
            + " ".join(where)
        )
    _kubectl("delete", *where, "--wait=true")
    return f"replaced the JobSet {job.name}, which had ended ({ended.lower()})"


def _kubectl(*arguments: str) -> str:
    command = ["kubectl", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            "kubectl not found: install it, or print what would be submitted with "
            "--dry_run"
        ) from error
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"kubectl {' '.join(arguments[:3])}: {reason[:300]}")
    return done.stdout


def spot_note(job: Job) -> str:
    """What a user of Spot nodes must know, in one line; "" without ``--spot``."""
    if not job.spot:
        return ""
    return (
        f"Spot nodes give {SPOT_GRACE_SECONDS} s to save, unless the node pool sets "
        "shutdownGracePeriodSeconds (docs/pods.md, GKE)"
    )
