"""Docker Compose files: one per machine, and one for the router."""

from typing import Any

import yaml

from sglang_ascend_moe.launch.disagg.ascend import NOT_RUN, Node, listed_router_arguments, nodes, window_notes
from sglang_ascend_moe.launch.disagg.deployment import Deployment
from sglang_ascend_moe.launch.plan.moe_config import MoeShape

# Of the driver on the machine, needed inside of every container that uses NPUs.
DRIVER_FILES = (
    "/usr/local/Ascend/driver", "/usr/local/sbin/npu-smi", "/etc/ascend_install.info", "/usr/local/dcmi",
)  # fmt: skip
MANAGER_DEVICES = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")


def render(deployment: Deployment, shape: MoeShape) -> dict[str, str]:
    """File name -> text."""
    files = {}
    for node in nodes(deployment, shape):
        notes = window_notes({node.role: node.plan})
        files[f"{node.name}.compose.yaml"] = document({node.name: server(deployment, node)}, notes)
    router = {
        "image": deployment.ascend.image,
        "network_mode": "host",
        "restart": "unless-stopped",
        "command": listed_router_arguments(deployment),
    }
    files["router.compose.yaml"] = document({"router": router}, [])
    return files


def server(deployment: Deployment, node: Node) -> dict[str, Any]:
    """The service of one machine."""
    npus = deployment.roles[node.role].ranks_per_node
    mounts = [*DRIVER_FILES, deployment.model_path]
    if deployment.secret_file is not None:
        mounts.append(deployment.secret_file)
    return {
        "image": deployment.ascend.image,
        # Ranks reach each other, and the other role, by the machines' own addresses.
        "network_mode": "host",
        "ipc": "host",
        "pid": "host",
        "shm_size": "64gb",
        "ulimits": {"memlock": -1},
        "devices": [f"/dev/davinci{number}" for number in range(npus)] + list(MANAGER_DEVICES),
        "volumes": [f"{path}:{path}:ro" for path in mounts],
        "environment": node.environment,
        "command": node.arguments,
    }


def document(services: dict[str, Any], notes: list[str]) -> str:
    head = "".join(f"# {note}\n" for note in (NOT_RUN, *notes))
    return head + yaml.safe_dump({"services": services}, sort_keys=False, width=100)
