"""Holds the rendered objects against each other and against the node's settings.

Usage: check.py LEDGERMQ BASE.yaml EXAMPLE.yaml

kubernetes-validate knows whether each object is well formed; this knows what they must mean together:
selectors select the pods, probes ask the address that the node gives to probes, each file that the
settings name is mounted, and the node reads what a pod would get.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from objects import pod_files, pod_variables, read

FAILED = []


def check(holds, what):
    if not holds:
        FAILED.append(what)
        print(f"k8s/check.py: not so: {what}", file=sys.stderr)


def one(objects, kind, prefix=""):
    found = [value for (of, name), value in objects.items() if of == kind and name.startswith(prefix)]
    check(len(found) == 1, f"there is one {kind} {prefix}")
    return found[0]


def port_of(address):
    return int(address.rsplit("/" if address.startswith("/") else ":", 1)[1])


def check_settings(objects, settings):
    """The settings against StatefulSet and Services."""
    pods = one(objects, "StatefulSet")["spec"]
    node = pods["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in node["ports"]}
    listens = {
        "mqtt": settings["mqtt"]["listen"],
        "api": settings["api"]["listen"],
        "probes": settings["api"]["probes_listen"],
        "p2p": settings["p2p"]["listen"][0],
    }
    for name, address in listens.items():
        check(ports[name] == port_of(address), f"container port {name} is that of {address}")
        check("0.0.0.0" in address, f"{name} listens on all addresses of the pod")

    for probe, path in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]:
        check(node[probe]["httpGet"] == {"path": path, "port": "probes"}, f"{probe} asks {path} of the probes' port")
    startup = node["startupProbe"]
    check(startup["periodSeconds"] * startup["failureThreshold"] >= 600, "ten minutes to start")

    labels = pods["template"]["metadata"]["labels"]
    selectors = {
        "StatefulSet": pods["selector"]["matchLabels"],
        "PodDisruptionBudget": one(objects, "PodDisruptionBudget")["spec"]["selector"].get("matchLabels"),
        "NetworkPolicy": one(objects, "NetworkPolicy")["spec"]["podSelector"].get("matchLabels"),
    }
    for (kind, name), found in objects.items():
        if kind == "Service":
            selectors[name] = found["spec"]["selector"]
            for port in found["spec"]["ports"]:
                check(ports.get(port["targetPort"]) == port["port"], f"{name} leads to port {port['name']}")
    for name, selector in selectors.items():
        check(selector and selector.items() <= labels.items(), f"{name} selects the pods, and no others")

    headless = objects[("Service", pods["serviceName"])]["spec"]
    check(headless["clusterIP"] == "None", "the governing Service is headless")
    check(headless.get("publishNotReadyAddresses") is True, "it has the addresses of pods that are not ready")
    bootstrap = f"/dns/{pods['serviceName']}/tcp/{ports['p2p']}"
    check(settings["p2p"]["bootstrap"] == [bootstrap], f"nodes find each other by {bootstrap}")

    faulty = (pods["replicas"] - 1) // 3
    budget = one(objects, "PodDisruptionBudget")["spec"]
    check(budget["maxUnavailable"] == faulty == 1, "as many pods may be away as replicas may be faulty")
    check(pods["podManagementPolicy"] == "Parallel", "no pod waits for another")
    check(pods["template"]["spec"]["terminationGracePeriodSeconds"] >= 60, "a minute to stop")
    check_mounts(pods, node, settings)


def check_mounts(pods, node, settings):
    mounts = {mount["mountPath"]: mount for mount in node["volumeMounts"]}
    for setting in ["genesis", "node_key"]:
        check(mounts.get(settings[setting], {}).get("readOnly") is True, f"{setting} is mounted, read-only")
    check(mounts.get(settings["p2p"]["swarm_key"], {}).get("readOnly") is True, "p2p.swarm_key is mounted, read-only")
    key = mounts[settings["node_key"]]
    check(key.get("subPathExpr") == "$(POD_NAME).key", "each pod sees its own key alone")
    claims = {claim["metadata"]["name"] for claim in pods["volumeClaimTemplates"]}
    for setting in ["data_dir", "node_key_mark"]:
        on = [mount for path, mount in mounts.items() if Path(path) in Path(settings[setting]).parents]
        check(on and on[0]["name"] in claims and not on[0].get("readOnly"), f"{setting} is on a volume that stays")
    data, mark = Path(settings["data_dir"]), Path(settings["node_key_mark"])
    check(data not in mark.parents, "the mark outlives the data directory")


def check_security(objects):
    """The Pod Security Standard "restricted", and what goes beyond it."""
    pod = one(objects, "StatefulSet")["spec"]["template"]["spec"]
    node = pod["containers"][0]
    check(pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0, "not root")
    check(pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, "seccomp RuntimeDefault")
    check(pod["automountServiceAccountToken"] is False, "no service account token")
    check(pod["enableServiceLinks"] is False, "no variables of Services")
    inside = node["securityContext"]
    check(inside["allowPrivilegeEscalation"] is False, "no privilege escalation")
    check(inside["readOnlyRootFilesystem"] is True, "read-only root file system")
    check(inside["capabilities"] == {"drop": ["ALL"]}, "no capabilities")
    check("memory" in node["resources"]["limits"], "memory is limited")
    kinds = {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]}
    check(kinds <= {"configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim"}, "no other volumes")
    for field in ["hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"]:
        check(not pod.get(field), f"no {field}")


def check_node_reads(program, objects):
    """The node's own word on what each pod gets, at the paths where it is here."""
    pods, seen = one(objects, "StatefulSet")["spec"], []
    for at in range(pods["replicas"]):
        with tempfile.TemporaryDirectory() as here:
            files = pod_files(objects, f"ledgermq-{at}", here)
            variables = pod_variables(objects, f"ledgermq-{at}")
            settings = files["/etc/ledgermq/node.toml"]
            text = settings.read_text()
            for path, found in files.items():
                text = text.replace(f'"{path}"', f'"{found}"')
            settings.write_text(text)
            run = subprocess.run(
                [program, "node", "--check", "--config", settings],
                env={**os.environ, **variables}, capture_output=True, text=True, timeout=60, check=False,
            )
            check(run.returncode == 0, f"the node of pod {at} can start: {run.stderr.strip()}")
            check(f"replica {at} of {pods['replicas']}" in run.stdout, f"pod {at} is replica {at}: {run.stdout}")
            seen.append(run.stdout)
    check(len(set(seen)) == pods["replicas"], "each pod has a key of its own")


def main(program, base, example):
    base, example = read(base), read(example)
    check(not [kind for kind, _ in base if kind == "Secret"], "the base has no Secret")
    check(one(example, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted",
          "the namespace enforces restricted pods")
    for objects in [base, example]:
        settings = tomllib.loads(one(objects, "ConfigMap", "ledgermq-settings")["data"]["node.toml"])
        check_settings(objects, settings)
        check_security(objects)
    check_node_reads(program, example)
    if FAILED:
        sys.exit(f"k8s/check.py: {len(FAILED)} failed")
    print(f"k8s: {len(example)} objects are valid, and each node can start with what its pod gets")


if __name__ == "__main__":
    main(*sys.argv[1:])
