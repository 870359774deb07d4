"""Asks a real Prometheus for every panel of every dashboard, and for every alert.

Usage: check.py LEDGERMQ

A network of four under load, one of whose nodes is killed and started again, is scraped once a second.
Each panel must name its unit and what it shows, each of its queries must give a number, each metric that
an alert names must exist, and Prometheus must be able to evaluate each alert.
"""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Longer than anything takes on a busy machine; only a failing run waits so long.
PATIENCE_S = 120

LOAD_S = 16

FAILED = []


def fail(what):
    FAILED.append(what)
    print(f"grafana/check.py: {what}", file=sys.stderr)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def wait_for(what, holds):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            found = holds()
        except (urllib.error.URLError, OSError):
            found = None
        if found:
            return found
        time.sleep(0.2)
    raise SystemExit(f"waited in vain: {what}")


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Network:
    """Four nodes, each with an address of its own for probes and metrics."""

    def __init__(self, program, dir):
        self.program, self.dir = program, dir
        made = subprocess.run([program, "init", "--replicas", "4", "--dir", dir / "net", "--json"],
                              check=True, capture_output=True, text=True)
        self.apis = [f"http://127.0.0.1:{node['api']}" for node in json.loads(made.stdout)["nodes"]]
        self.probes = [f"127.0.0.1:{port}" for port in free_ports(4)]
        self.nodes = {}
        for at in range(4):
            self.start(at)

    def start(self, at):
        environment = {**os.environ, "LEDGERMQ_API__PROBES_LISTEN": self.probes[at]}
        with open(self.dir / f"node-{at}.log", "ab") as log:
            self.nodes[at] = subprocess.Popen(
                [self.program, "node", "--config", self.dir / f"net/node-{at}/node.toml", "--stop-on-eof"],
                env=environment, stdin=subprocess.PIPE, stderr=log,
            )

    def wait_ready(self):
        for probes in self.probes:
            wait_for(f"{probes} is ready", lambda: get(f"http://{probes}/readyz"))

    def kill_primary(self):
        seen = json.loads(get(f"{self.apis[0]}/v1/consensus"))
        [seat] = [other["seat"] for other in seen["replicas"] if other["is_primary"]]
        self.nodes[seat].send_signal(signal.SIGKILL)
        self.nodes[seat].wait()
        return seat

    def stop(self):
        for node in self.nodes.values():
            node.kill()
            node.wait()


def start_prometheus(network, dir):
    [port] = free_ports(1)
    (dir / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(HERE / "rules/ledgermq.yml")],
        "scrape_configs": [{"job_name": "ledgermq", "static_configs": [{"targets": network.probes}]}],
    }))
    process = subprocess.Popen(
        ["prometheus", f"--config.file={dir}/prometheus.yml", f"--storage.tsdb.path={dir}/tsdb",
         f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"], cwd=dir,
    )
    return process, f"http://127.0.0.1:{port}"


def ask(prometheus, path, **parameters):
    try:
        answer = get(f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
    except urllib.error.HTTPError as error:
        return {"status": "error", "error": error.read().decode()}
    return json.loads(answer)


def values(answer):
    """All numbers of an answer that are numbers."""
    for series in answer.get("data", {}).get("result", []):
        for _, value in series.get("values", []) or [series["value"]]:
            if math.isfinite(float(value)):
                yield float(value)


def metrics_in(expression):
    return set(re.findall(r"\b((?:ledgermq|process)_[a-z0-9_]+|up)\b", expression))


def check_panel(prometheus, place, panel, known, since):
    for field in ["title", "description"]:
        if not panel.get(field, "").strip():
            fail(f"{place} has no {field}")
    if not panel["fieldConfig"]["defaults"].get("unit"):
        fail(f"{place} has no unit")
    if panel["datasource"]["uid"] != "${datasource}":
        fail(f"{place} has a data source of its own")
    asked = 0
    for target in panel["targets"]:
        asked += 1
        if not target.get("legendFormat"):
            fail(f"{place}: {target['refId']} has no legend")
        unknown = metrics_in(target["expr"]) - known
        if unknown:
            fail(f"{place}: there is no metric {unknown}")
        query = target["expr"]
        for name, value in {"$__rate_interval": "5s", "$job": ".+", "$instance": ".+"}.items():
            query = query.replace(name, value)
        if "$" in query:
            fail(f"{place}: unknown variable in {query}")
        answer = ask(prometheus, "query_range", query=query, start=since, end=time.time(), step=1)
        if answer["status"] != "success":
            fail(f"{place}: {query}: {answer['error']}")
        elif not any(True for _ in values(answer)):
            fail(f"{place}: no data for {query}")
    return asked


def check_layout(name, dashboard):
    panels, taken = dashboard["panels"], set()
    if len({panel["id"] for panel in panels}) != len(panels):
        fail(f"{name}: two panels have one id")
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        if cells & taken or at["x"] + at["w"] > 24:
            fail(f"{name}: {panel['title']} lies over another panel or beyond the edge")
        taken |= cells


def check_dashboards(prometheus, known, since):
    asked, files = 0, sorted((HERE / "dashboards").glob("*.json"))
    if len(files) < 3:
        fail("there are fewer than three dashboards")
    for file in files:
        dashboard = json.loads(file.read_text())
        if dashboard["uid"] != file.stem:
            fail(f"{file.name}: its uid is not its name")
        check_layout(file.name, dashboard)
        for panel in dashboard["panels"]:
            if panel["type"] != "row":
                asked += check_panel(prometheus, f"{file.name}: {panel['title']}", panel, known, since)
    return asked


def check_alerts(prometheus, known):
    groups = ask(prometheus, "rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    if not rules:
        fail("there are no rules")
    for rule in rules:
        if rule["health"] != "ok":
            fail(f"{rule['name']}: {rule['health']}: {rule.get('lastError')}")
        unknown = metrics_in(rule["query"]) - known
        if unknown or not metrics_in(rule["query"]):
            fail(f"{rule['name']}: there is no metric {unknown}")
        if rule["labels"].get("severity") not in ["critical", "warning"]:
            fail(f"{rule['name']} has no severity")
        for note in ["summary", "description"]:
            if not rule["annotations"].get(note):
                fail(f"{rule['name']} has no {note}")
    return len(rules)


def run(program, dir):
    network, prometheus = Network(program, dir), None
    try:
        network.wait_ready()
        process, prometheus = start_prometheus(network, dir)
        since = time.time()
        load = subprocess.Popen(
            [program, "bench", "--network", dir / "net", "--clients", "4", "--rate", "40", "--items", "5",
             "--duration", str(LOAD_S), "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        try:
            final = 'sum(ledgermq_ingress_final_ms_count) > 40'
            wait_for("messages are final", lambda: any(values(ask(prometheus, "query", query=final))))
            killed = network.kill_primary()
            ended = 'sum(ledgermq_consensus_view_change_ms_count) >= 3'
            wait_for("a view has changed", lambda: any(values(ask(prometheus, "query", query=ended))))
            network.start(killed)
            network.wait_ready()
            measured, _ = load.communicate(timeout=PATIENCE_S)
            if load.returncode != 0:
                raise SystemExit(f"the load failed: {measured}")
            all_up = 'sum(up{job="ledgermq"}) == 4'
            wait_for("all are scraped", lambda: any(values(ask(prometheus, "query", query=all_up))))
            known = set(ask(prometheus, "label/__name__/values")["data"])
            asked = check_dashboards(prometheus, known, since)
            alerts = check_alerts(prometheus, known)
        finally:
            load.kill()
            load.wait()
            process.kill()
            process.wait()
    finally:
        network.stop()
    if FAILED:
        raise SystemExit(f"grafana/check.py: {len(FAILED)} failed")
    print(f"grafana: {asked} queries of all panels have data, and {alerts} alerts can be evaluated")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        run(Path(sys.argv[1]).resolve(), Path(work))
