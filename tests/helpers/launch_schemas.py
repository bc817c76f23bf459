"""The published schemas of what is submitted: the parts in use, nothing else allowed.

Written from the references named beside each.
"""


def struct(required="", **properties):
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


def array(items):
    return {"type": "array", "items": items, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}
INTEGER = {"type": "integer", "minimum": 0}
# An RFC 1123 label, as the names of containers, volumes and replicated jobs must be;
# the name of a JobSet begins the names of its pods.
LABEL = {
    "type": "string",
    "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    "maxLength": 63,
}
KEYS = r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
TEXTS = {
    "type": "object",
    "additionalProperties": {"type": "string"},
    "propertyNames": {"pattern": KEYS},
}
METADATA = struct("name", name=LABEL, namespace=LABEL, labels=TEXTS, annotations=TEXTS)

# core/v1, kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1
CONTAINER = struct(
    "name image",
    name=LABEL,
    image=TEXT,
    command=array(TEXT),
    workingDir={"type": "string", "pattern": "^/"},
    ports=array(struct("containerPort", containerPort=COUNT | {"maximum": 65535})),
    resources=struct(
        limits={
            "type": "object",
            # Whole numbers: extended resources cannot be shared.
            "additionalProperties": COUNT,
            "propertyNames": {"pattern": KEYS},
        }
    ),
    volumeMounts=array(struct("name mountPath", name=LABEL, mountPath=TEXT)),
    env=array(
        struct(
            "name",
            name={"type": "string", "pattern": "^[-._a-zA-Z][-._a-zA-Z0-9]*$"},
            value={"type": "string"},
        )
    ),
)
POD = struct(
    "containers",
    restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
    terminationGracePeriodSeconds=INTEGER,
    serviceAccountName=LABEL,
    hostNetwork={"type": "boolean"},
    dnsPolicy={"enum": ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]},
    nodeSelector=TEXTS,
    containers=array(CONTAINER),
    tolerations=array(
        struct(
            "",
            key=TEXT,
            operator={"enum": ["Exists", "Equal"]},
            value={"type": "string"},
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
        )
    ),
    volumes=array(
        struct(
            "name",
            name=LABEL,
            csi=struct("driver", driver=TEXT, volumeAttributes=TEXTS),
            emptyDir=struct(medium={"enum": ["", "Memory"]}),
        )
    ),
)
# batch/v1, kubernetes.io/docs/reference/kubernetes-api/workload-resources/job-v1
JOB_SPEC = struct(
    "template",
    parallelism=INTEGER,
    completions=INTEGER,
    completionMode={"enum": ["NonIndexed", "Indexed"]},
    backoffLimit=INTEGER,
    podFailurePolicy=struct(
        "rules",
        rules=array(
            struct(
                "action",
                action={"enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
                onExitCodes=struct(
                    "operator values",
                    containerName=LABEL,
                    operator={"enum": ["In", "NotIn"]},
                    values={
                        "type": "array",
                        "items": {"type": "integer", "minimum": 1, "maximum": 255},
                        "minItems": 1,
                        "maxItems": 255,
                        "uniqueItems": True,
                    },
                ),
            )
        ),
    ),
    template=struct("spec", metadata=struct(annotations=TEXTS, labels=TEXTS), spec=POD),
)
# jobset.x-k8s.io/v1alpha2, github.com/kubernetes-sigs/jobset, config/components/crd
JOBSET = struct(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=METADATA,
    spec=struct(
        "replicatedJobs",
        ttlSecondsAfterFinished=INTEGER,
        failurePolicy=struct(
            "",
            maxRestarts=INTEGER,
            restartStrategy={"enum": ["Recreate", "BlockingRecreate"]},
            rules=array(
                struct(
                    "action name",
                    name={
                        "type": "string",
                        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    },
                    action={
                        "enum": [
                            "FailJobSet",
                            "RestartJobSet",
                            "RestartJobSetAndIgnoreMaxRestarts",
                        ]
                    },
                    # Checked by its webhook: the reasons of batch/v1.
                    onJobFailureReasons=array(
                        {
                            "enum": [
                                "BackoffLimitExceeded",
                                "DeadlineExceeded",
                                "FailedIndexes",
                                "MaxFailedIndexesExceeded",
                                "PodFailurePolicy",
                            ]
                        }
                    ),
                )
            ),
        ),
        replicatedJobs=array(
            struct(
                "name template",
                name=LABEL,
                replicas=INTEGER,
                template=struct("spec", spec=JOB_SPEC),
            )
        ),
    ),
)
# kueue.x-k8s.io/v1beta2, kueue.sigs.k8s.io/docs/reference/kueue.v1beta2
QUEUES = {
    "ResourceFlavor": struct("", nodeLabels=TEXTS),
    "ClusterQueue": struct(
        "",
        namespaceSelector={"type": "object"},
        resourceGroups=array(
            struct(
                "coveredResources flavors",
                coveredResources=array(TEXT),
                flavors=array(
                    struct(
                        "name resources",
                        name=LABEL,
                        resources=array(
                            struct("name nominalQuota", name=TEXT, nominalQuota=COUNT)
                        ),
                    )
                ),
            )
        ),
    ),
    "LocalQueue": struct("clusterQueue", clusterQueue=LABEL),
}
# docs.skypilot.co/en/latest/reference/yaml-spec.html
SKYPILOT = struct(
    "resources run",
    name=TEXT,
    workdir=TEXT,
    resources=struct(
        "",
        infra=TEXT,
        accelerators=TEXT,
        accelerator_args=struct("", runtime_version=TEXT, tpu_name=TEXT),
        use_spot={"type": "boolean"},
        job_recovery=struct(
            "",
            strategy={"enum": ["FAILOVER", "EAGER_NEXT_REGION"]},
            max_restarts_on_errors=INTEGER,
            recover_on_exit_codes=array({"type": "integer", "maximum": 255}),
        ),
    ),
    file_mounts={
        "type": "object",
        "additionalProperties": struct(
            "source",
            source={"type": "string", "pattern": "^gs://"},
            mode={"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]},
        ),
    },
    setup=TEXT,
    run=TEXT,
)
