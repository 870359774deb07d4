"""Rendered Kubernetes objects, and what a pod sees of them."""

import base64
from pathlib import Path

import yaml


def read(path):
    """All objects of a file, by kind and name."""
    objects = [found for found in yaml.safe_load_all(Path(path).read_text()) if found]
    return {(found["kind"], found["metadata"]["name"]): found for found in objects}


def stateful_set(objects):
    [found] = [value for (kind, _), value in objects.items() if kind == "StatefulSet"]
    return found["spec"]


def pod_variables(objects, pod):
    """The variables of the pod of this name."""
    node = stateful_set(objects)["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value", pod).replace("$(POD_NAME)", pod) for entry in node["env"]}


def pod_files(objects, pod, into):
    """Writes what the pod of this name sees of ConfigMaps and Secrets below `into`; gives the file for
    each path in the container."""
    spec = stateful_set(objects)["template"]["spec"]
    volumes, written = {volume["name"]: volume for volume in spec["volumes"]}, {}
    for mount in spec["containers"][0]["volumeMounts"]:
        volume = volumes.get(mount["name"])
        if volume is None:  # it is of a volume claim
            continue
        key = mount.get("subPath") or mount["subPathExpr"].replace("$(POD_NAME)", pod)
        if "secret" in volume:
            content = base64.b64decode(objects["Secret", volume["secret"]["secretName"]]["data"][key])
        else:
            content = objects["ConfigMap", volume["configMap"]["name"]]["data"][key].encode()
        path = Path(into) / mount["mountPath"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600 if "secret" in volume else 0o644)
        written[mount["mountPath"]] = path
    return written
