"""Google Kubernetes Engine: a JobSet of TPU slices, queued by Kueue.

Sources: the JobSet API jobset.x-k8s.io/v1alpha2 (github.com/kubernetes-sigs/jobset),
batch/v1 Jobs with a podFailurePolicy (kubernetes.io/docs/concepts/workloads/
controllers/job), the Kueue API kueue.x-k8s.io/v1beta1 (kueue.sigs.k8s.io), and GKE's
labels of TPU nodes and annotations of mounted buckets (docs.cloud.google.com).
"""

from experiments.launch.job import FATAL, GRACE_SECONDS, MOUNTS, Job

CODE = "/segjax"  # folder of the image that holds the code


def manifest(job: Job, image: str, queue: str, service_account: str) -> dict:
    """The JobSet of a job: one Job per slice, one pod per host.

    A pod that ends with 0 is done.  If one fails with a code of ``FATAL``, the JobSet
    fails; otherwise all pods are started again, up to ``max_restarts`` times, and
    training continues from its last checkpoint.

    Args:
      image: with Python, segjax's requirements and the code in ``CODE``.
      queue: the LocalQueue of Kueue; "": none.
      service_account: of Kubernetes, allowed to use the buckets; "": the default one.
    """
    # Each slice gets a node pool of its own: all its hosts, and nobody else's.
    exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    metadata = {
        "name": job.name,
        "annotations": {exclusive: "cloud.google.com/gke-nodepool"},
    }
    if queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": queue}
    workers = {
        "parallelism": job.slice.hosts,
        "completions": job.slice.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # the hosts of a slice can only start together
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "train",
                        "operator": "In",
                        "values": list(FATAL),
                    },
                }
            ]
        },
        "template": _pod(job, image, service_account),
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "rules": [
                    {
                        "name": "badInputOrLoss",
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


def _pod(job: Job, image: str, service_account: str) -> dict:
    container = {
        "name": "train",
        "image": image,
        "workingDir": CODE,
        "command": list(job.command),
        # Of the TPU runtime: between the hosts of a slice, and of its metrics.
        "ports": [{"containerPort": 8471}, {"containerPort": 8431}],
        "resources": {"limits": {"google.com/tpu": job.slice.chips_per_host}},
        # Through it, worker processes hand over batches; 64 MB is the default.
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    spec = {
        "restartPolicy": "Never",  # demanded by podFailurePolicy
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": _node_labels(job),
        "containers": [container],
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}],
    }
    pod = {"spec": spec}
    if service_account:
        spec["serviceAccountName"] = service_account
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
        pod["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
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
                        "mountOptions": "implicit-dirs",
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


def queue_manifests(job: Job, queue: str, quota: int) -> list[dict]:
    """What an administrator applies once: a queue for slices of this topology.

    Args:
      queue: the name of all three objects.
      quota: chips that jobs of the queue may use at a time.
    """
    api = "kueue.x-k8s.io/v1beta1"
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
            "metadata": {"name": queue, "namespace": "default"},
            "spec": {"clusterQueue": queue},
        },
    ]
