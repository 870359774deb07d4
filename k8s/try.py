"""Runs the rendered pods as containers of podman, as the kubelet would, and puts them to work.

Usage: try.py LEDGERMQ IMAGE EXAMPLE.yaml NET

Everything is taken down at the end by the ids of what was made here.
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from objects import pod_files, pod_variables, read, stateful_set

# Longer than anything takes on a busy machine; only a failing run waits so long.
PATIENCE_S = 120

READINGS = "time,temperature\n" + "".join(f"2026-01-01T{hour:02}:00:00Z,{hour / 2}\n" for hour in range(24))


def run(*arguments, **options):
    done = subprocess.run([str(part) for part in arguments], capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(str(part) for part in arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def podman(*arguments):
    return run("podman", *arguments)


def wait_for(what, holds):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if holds():
            return
        time.sleep(0.2)
    raise SystemExit(f"waited in vain: {what}")


class Cluster:
    """The pods of a StatefulSet, each a container."""

    def __init__(self, image, objects, work):
        self.image, self.objects, self.work = image, objects, Path(work)
        self.pods = stateful_set(objects)
        self.spec = self.pods["template"]["spec"]
        self.node = self.spec["containers"][0]
        self.containers, self.addresses = {}, {}
        self.network = f"ledgermq-try-{os.getpid()}"
        podman("network", "create", self.network)

    def start(self, at):
        """Starts a pod, with the volume that it had."""
        pod = f"ledgermq-{at}"
        user, group = self.spec["securityContext"]["runAsUser"], self.spec["securityContext"]["fsGroup"]
        files = pod_files(self.objects, pod, self.work / pod)
        mounts = [f"{file}:{path}:ro" for path, file in files.items()]
        for path, file in files.items():
            if path.startswith("/run/secrets/"):
                # As the kubelet leaves a Secret of mode 0400 to a pod with an fsGroup.
                os.chown(file, 0, group)
                file.chmod(0o440)
        for claim in self.pods["volumeClaimTemplates"]:
            [path] = [on["mountPath"] for on in self.node["volumeMounts"] if on["name"] == claim["metadata"]["name"]]
            volume = self.work / f"{pod}-{claim['metadata']['name']}"
            volume.mkdir(exist_ok=True)
            os.chown(volume, 0, group)
            volume.chmod(0o2775)
            mounts.append(f"{volume}:{path}")
        variables = [f"{name}={value}" for name, value in pod_variables(self.objects, pod).items()]
        assert self.node["securityContext"]["readOnlyRootFilesystem"]
        self.containers[at] = podman(
            "--runtime", "runc", "run", "--detach",
            "--network", self.network, "--network-alias", self.pods["serviceName"], "--hostname", pod,
            "--user", f"{user}:{group}", "--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000",
            *[part for mount in mounts for part in ("--volume", mount)],
            *[part for variable in variables for part in ("--env", variable)],
            self.image, *self.node["args"],
        )
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        self.addresses[at] = podman("inspect", "--format", form, self.containers[at])

    def on_volume(self, at, path):
        return self.work / f"ledgermq-{at}-data" / path

    def probe(self, at, name):
        """What the kubelet would be told."""
        asked = self.node[name]["httpGet"]
        port = {port["name"]: port["containerPort"] for port in self.node["ports"]}[asked["port"]]
        try:
            url = f"http://{self.addresses[at]}:{port}{asked['path']}"
            with urllib.request.urlopen(url, timeout=self.node[name]["timeoutSeconds"]) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, which):
        for name in ["startupProbe", "readinessProbe", "livenessProbe"]:
            for at in which:
                wait_for(f"{name} of pod {at}", lambda: self.probe(at, name))

    def remove(self, at):
        podman("rm", "--force", "--time", "0", self.containers.pop(at))

    def stop(self, at):
        """As for a pod that is deleted: SIGTERM, and time."""
        podman("stop", "--time", self.spec["terminationGracePeriodSeconds"], self.containers[at])
        code = podman("inspect", "--format", "{{.State.ExitCode}}", self.containers[at])
        if code != "0":
            raise SystemExit(f"pod {at} stopped with {code}:\n{self.log(at)}")

    def log(self, at):
        done = subprocess.run(["podman", "logs", self.containers[at]], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def take_down(self):
        for container in self.containers.values():
            subprocess.run(["podman", "rm", "--force", "--time", "0", container], capture_output=True, check=False)
        subprocess.run(["podman", "network", "rm", self.network], capture_output=True, check=False)


def try_it(program, cluster, net, work):
    began = time.monotonic()
    told = lambda what: print(f"  {time.monotonic() - began:5.1f} s  {what}", flush=True)
    all_pods = range(cluster.pods["replicas"])
    for at in all_pods:
        cluster.start(at)
    cluster.wait_ready(all_pods)
    told("four pods found each other by one name, and are ready")

    key, readings = work / "iot.key", work / "readings.csv"
    api = f"http://{cluster.addresses[0]}:8080"
    readings.write_text(READINGS)
    run(program, "client", "new", "devices/iot", "--key", key)
    run(program, "client", "register", "devices/iot", "--key", key, "--network", net, "--api", api)
    publish = [program, "publish", "devices/iot", "--key", key, "--genesis", Path(net) / "genesis.json"]
    publish += ["--csv", readings, "--device", "th-01", "--final-timeout", PATIENCE_S, "--mqtt"]
    run(*publish, f"{cluster.addresses[1]}:1883", timeout=PATIENCE_S)
    told("24 messages through pod 1 are final")
    for at in all_pods:
        if not cluster.on_volume(at, "node.key.used").exists():
            raise SystemExit(f"pod {at} has voted and left no mark on its volume")

    victim = max(all_pods)
    before = cluster.addresses[victim]
    cluster.remove(victim)
    run(*publish, f"{cluster.addresses[0]}:1883", "--again", timeout=PATIENCE_S)
    told(f"24 more, with pod {victim} killed")

    cluster.start(victim)
    cluster.wait_ready(all_pods)
    told(f"pod {victim} is back at {cluster.addresses[victim]}, was {before}, and ready")

    for at in all_pods:
        cluster.stop(at)
    told("all stopped in order")


def main(program, image, example, net):
    with tempfile.TemporaryDirectory() as work:
        cluster = Cluster(image, read(example), work)
        try:
            try_it(program, cluster, net, Path(work))
        except BaseException:
            for at in cluster.containers:
                print(f"--- pod {at}\n{cluster.log(at)[-3000:]}", file=sys.stderr)
            raise
        finally:
            cluster.take_down()
    print("k8s: four containers formed a network, lost one, and stopped in order")


if __name__ == "__main__":
    main(*sys.argv[1:])
