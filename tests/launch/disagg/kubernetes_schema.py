"""Strict JSON schemas of the manifests that `render` writes.

Names and nesting are those of Kubernetes' core/v1, apps/v1 and of LeaderWorkerSet v1; everything that is not written by
`render` is left out and so refused.
"""

from typing import Any

STRING = {"type": "string", "minLength": 1}
NAME = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
COUNT = {"type": "integer", "minimum": 1}
LABELS = {"type": "object", "additionalProperties": STRING, "minProperties": 1}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9]+$"}}


def closed(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """An object with these properties and no other."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


PROBE = closed({"httpGet": closed({"path": STRING, "port": PORT}), "periodSeconds": COUNT}, {"failureThreshold": COUNT})
VARIABLE = {
    "oneOf": [
        closed({"name": STRING, "value": {"type": "string"}}),
        closed({"name": STRING, "valueFrom": closed({"fieldRef": closed({"fieldPath": STRING})})}),
    ]
}
CONTAINER = closed(
    {"name": NAME, "image": STRING, "command": listed({"type": "string"})},
    {
        "env": listed(VARIABLE),
        "ports": listed(closed({"name": NAME, "containerPort": PORT})),
        "resources": closed({"limits": QUANTITIES, "requests": QUANTITIES}),
        "volumeMounts": listed(
            closed({"name": NAME, "mountPath": STRING}, {"readOnly": {"type": "boolean"}, "subPath": STRING})
        ),
        "startupProbe": PROBE,
        "readinessProbe": PROBE,
    },
)
VOLUME = {
    "oneOf": [
        closed({"name": NAME, "persistentVolumeClaim": closed({"claimName": NAME}, {"readOnly": {"type": "boolean"}})}),
        closed({"name": NAME, "emptyDir": closed({"medium": {"const": "Memory"}, "sizeLimit": STRING})}),
        closed({"name": NAME, "secret": closed({"secretName": NAME, "defaultMode": {"const": 0o400}})}),
    ]
}
POD = closed(
    {
        "metadata": closed({"labels": LABELS}),
        "spec": closed({"containers": listed(CONTAINER)}, {"volumes": listed(VOLUME)}),
    }
)
METADATA = closed({"name": NAME}, {"labels": LABELS})


def manifest(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return closed({"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": METADATA, "spec": spec})


MANIFEST = {
    "oneOf": [
        manifest(
            "leaderworkerset.x-k8s.io/v1",
            "LeaderWorkerSet",
            closed(
                {
                    "replicas": COUNT,
                    "leaderWorkerTemplate": closed(
                        {
                            "size": COUNT,
                            "restartPolicy": {"enum": ["RecreateGroupOnPodRestart", "None"]},
                            "leaderTemplate": POD,
                            "workerTemplate": POD,
                        }
                    ),
                }
            ),
        ),
        manifest(
            "apps/v1",
            "Deployment",
            closed({"replicas": COUNT, "selector": closed({"matchLabels": LABELS}), "template": POD}),
        ),
        manifest(
            "v1",
            "Service",
            closed({"selector": LABELS, "ports": listed(closed({"name": NAME, "port": PORT, "targetPort": PORT}))}),
        ),
    ]
}
SERVICE = closed(
    {"image": STRING, "network_mode": {"const": "host"}, "command": listed({"type": "string"})},
    {
        "ipc": {"const": "host"},
        "pid": {"const": "host"},
        "restart": STRING,
        "shm_size": STRING,
        "ulimits": closed({"memlock": {"type": "integer"}}),
        "devices": listed(STRING),
        "volumes": listed({"type": "string", "pattern": "^/[^:]+:/[^:]+:ro$"}),
        "environment": {"type": "object", "additionalProperties": {"type": "string"}},
    },
)
COMPOSE = closed({"services": {"type": "object", "additionalProperties": SERVICE, "minProperties": 1}})
