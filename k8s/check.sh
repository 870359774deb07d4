#!/usr/bin/env bash
# Renders k8s/example with a network made for the purpose, validates all objects strictly, holds them
# against the node's settings, and has the node itself read what each pod would get. Installs what it
# needs below target/.
set -euo pipefail
cd "$(dirname "$0")/.."
. k8s/tools.sh

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
render "$copy"
for version in 1.31 1.37; do
  "$tools/venv/bin/kubernetes-validate" --strict --quiet -k "$version" "$copy/base.yaml" "$copy/example.yaml"
done
"$tools/venv/bin/python" k8s/check.py "$ledgermq" "$copy/base.yaml" "$copy/example.yaml"
