"""Kubernetes manifests: a LeaderWorkerSet per role, whose groups are instances, and a Deployment for the router."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import yaml

from sglang_ascend_moe.launch.disagg.ascend import (
    NOT_RUN,
    MachineAddress,
    arguments,
    environment,
    router_arguments,
    window_notes,
    window_plan,
)
from sglang_ascend_moe.launch.disagg.deployment import Deployment, RoleName
from sglang_ascend_moe.launch.plan.memory_plan import MemoryPlan
from sglang_ascend_moe.launch.plan.moe_config import MoeShape

# Set by LeaderWorkerSet in every pod; Kubernetes puts them into command lines.
OF_POD = MachineAddress(host="0.0.0.0", leader="$(LWS_LEADER_ADDRESS)", node_rank="$(LWS_WORKER_INDEX)")
NPU_RESOURCE = "huawei.com/Ascend910"
START_SECONDS = 3600
SECRET_MODE = 0o400


def render(deployment: Deployment, shape: MoeShape) -> dict[str, str]:
    """File name -> text."""
    plans = {name: window_plan(deployment, name, shape) for name in deployment.roles}
    documents = [
        *(instances(deployment, name, plan) for name, plan in plans.items()),
        router(deployment),
        router_service(deployment),
    ]
    head = "".join(f"# {note}\n" for note in (NOT_RUN, *window_notes(plans)))
    text = yaml.safe_dump_all(documents, sort_keys=False, width=100)
    return {f"{deployment.name}.k8s.yaml": head + text}


def instances(deployment: Deployment, name: RoleName, plan: MemoryPlan) -> dict[str, Any]:
    """The LeaderWorkerSet of a role."""
    role = deployment.roles[name]
    group = f"{deployment.name}-{name}"
    labels = {"app": deployment.name, "role": name}
    pod = pod_spec(deployment, name, plan)
    ready = {"httpGet": {"path": "/health", "port": deployment.ascend.port}}
    leader = {
        **pod,
        "containers": [
            {
                **pod["containers"][0],
                "ports": [{"name": "http", "containerPort": deployment.ascend.port}],
                "startupProbe": {**ready, "periodSeconds": 10, "failureThreshold": START_SECONDS // 10},
                "readinessProbe": {**ready, "periodSeconds": 5, "failureThreshold": 2},
            }
        ],
    }
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": group, "labels": labels},
        "spec": {
            "replicas": role.instances,
            "leaderWorkerTemplate": {
                "size": role.nodes,
                # Ranks of an exchange are fixed: an instance starts again as a whole.
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {"metadata": {"labels": labels}, "spec": leader},
                "workerTemplate": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
    }


def pod_spec(deployment: Deployment, name: RoleName, plan: MemoryPlan) -> dict[str, Any]:
    """The pod of one machine of an instance."""
    role = deployment.roles[name]
    ascend = deployment.ascend
    store = f"tcp://{leader_host(deployment, 'prefill', 0)}:{ascend.kv_store_port}"
    variables: list[dict[str, Any]] = [
        {"name": key, "value": value} for key, value in environment(deployment, name, plan, store).items()
    ]
    variables.append({"name": "SGLANG_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    npus = {NPU_RESOURCE: str(role.ranks_per_node)}
    secret_mounts, secret_volumes = secret(deployment)
    container = {
        "name": "server",
        "image": ascend.image,
        "command": arguments(deployment, name, OF_POD, plan),
        "env": variables,
        "resources": {"limits": npus, "requests": npus},
        "volumeMounts": [
            {"name": "model", "mountPath": deployment.model_path, "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *secret_mounts,
        ],
    }
    return {
        "containers": [container],
        "volumes": [
            {"name": "model", "persistentVolumeClaim": {"claimName": ascend.model_volume, "readOnly": True}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
            *secret_volumes,
        ],
    }


def secret(deployment: Deployment) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a container mounts for the secret, and the volumes of its pod; nothing without one."""
    if deployment.secret_file is None:
        return [], []
    path = PurePosixPath(deployment.secret_file)
    mount = {"name": "secret", "mountPath": str(path), "subPath": path.name, "readOnly": True}
    # Others than its user may not read it: servers refuse it otherwise.
    volume = {"secretName": deployment.ascend.secret_name, "defaultMode": SECRET_MODE}
    return [mount], [{"name": "secret", "secret": volume}]


def leader_host(deployment: Deployment, name: RoleName, instance: int) -> str:
    """The name that LeaderWorkerSet's own service gives to node 0 of an instance."""
    group = f"{deployment.name}-{name}"
    return f"{group}-{instance}.{group}"


def router(deployment: Deployment) -> dict[str, Any]:
    labels = {"app": deployment.name, "role": "router"}
    port = deployment.router.port or 8000
    words = router_arguments(deployment, lambda name, instance: leader_host(deployment, name, instance))
    container = {
        "name": "router",
        "image": deployment.ascend.image,
        "command": words,
        "ports": [{"name": "http", "containerPort": port}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": port}, "periodSeconds": 5},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"{deployment.name}-router", "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def router_service(deployment: Deployment) -> dict[str, Any]:
    labels = {"app": deployment.name, "role": "router"}
    port = deployment.router.port or 8000
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{deployment.name}-router", "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": port, "targetPort": port}]},
    }
