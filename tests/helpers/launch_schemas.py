"""The published schemas of what is submitted; nothing that they do not name is allowed.

cluster_schemas.json.gz holds those of JobSet v0.12.0 and Kueue v0.19.2 (Apache License
2.0, The Kubernetes Authors): openAPIV3Schema of the served version in
config/components/crd/bases of github.com/kubernetes-sigs/jobset and kueue, without
descriptions, status and the rules that are written in CEL.  A JobSet contains the Job
and the Pod of Kubernetes.  Metadata and SkyPilot's task are written by hand from the
references named beside each.
"""

import gzip
import json
from pathlib import Path


def strict(schema):
    """A schema of a CRD for jsonschema; unknown fields are refused, as by kubectl."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        fields = schema["properties"].items()
        out["properties"] = {name: strict(value) for name, value in fields}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
    return out


_PUBLISHED = json.loads(
    gzip.decompress((Path(__file__).parent / "cluster_schemas.json.gz").read_bytes())
)
CRDS = {kind: strict(entry["schema"]) for kind, entry in _PUBLISHED.items()}
SOURCES = {kind: entry["source"] for kind, entry in _PUBLISHED.items()}


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
# meta/v1 ObjectMeta, kubernetes.io/docs/reference/kubernetes-api
METADATA = struct("name", name=LABEL, namespace=LABEL, labels=TEXTS, annotations=TEXTS)

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
    envs={"type": "object", "additionalProperties": {"type": "string"}},
    setup=TEXT,
    run=TEXT,
)
