#!/usr/bin/env bash
# Tests the alert rules, then starts a local network, puts it under load, kills its primary, lets a real
# Prometheus scrape it meanwhile, and asks that for every panel of every dashboard. Takes about 20 s.
# Installs prometheus on Debian. LEDGERMQ names the program, target/debug/ledgermq if it does not.
set -euo pipefail
cd "$(dirname "$0")/.."
ledgermq=$(realpath "${LEDGERMQ:-target/debug/ledgermq}")
[ -x "$ledgermq" ] || { echo "no program $ledgermq: run cargo build, or set LEDGERMQ" >&2; exit 1; }
if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends prometheus >/dev/null
fi
promtool test rules grafana/rules/ledgermq.test.yml
promtool check config grafana/prometheus.yml
python3 grafana/check.py "$ledgermq"
