#!/usr/bin/env bash
# Builds the image with podman and runs the four pods of k8s/example as containers, with the settings,
# keys, users and mounts of the rendered StatefulSet, on a network with a name server that gives one name
# all their addresses. They must form a network, take what a gateway publishes, go on with one killed,
# find it again at another address, and stop in order. Needs root; installs what it needs on Debian.
set -euo pipefail
cd "$(dirname "$0")/.."
. k8s/tools.sh
for program in podman runc aardvark-dns strip; do
  command -v "$program" >/dev/null || [ -x "/usr/lib/podman/$program" ] ||
    { apt-get update -qq; apt-get install -y -qq podman runc netavark aardvark-dns binutils >/dev/null; break; }
done

work=$(mktemp -d)
tag=ledgermq-try-$$
built=()
clean() {
  for image in "${built[@]}"; do podman rmi --force "$image" >/dev/null 2>&1 || true; done
  rm -rf "$work"
}
trap clean EXIT

# What stands in for the images of registries: the program that was built here, and its libraries.
mkdir -p "$work/binary/out" "$work/runtime"
strip -o "$work/binary/out/ledgermq" "$ledgermq"
for library in $(ldd "$ledgermq" | grep -o '/[^ ]*'); do
  install -D "$(realpath "$library")" "$work/runtime$library"
done
for part in binary runtime; do
  printf 'FROM scratch\nCOPY . /\n' | podman build --quiet --tag "$tag-$part" --file - "$work/$part" >/dev/null
  built+=("localhost/$tag-$part")
done
podman build --quiet --file k8s/Dockerfile --tag "$tag" \
  --build-arg "BINARY=localhost/$tag-binary" --build-arg "RUNTIME=localhost/$tag-runtime" . >/dev/null
built=("localhost/$tag" "${built[@]}")

render "$work"
"$tools/venv/bin/python" k8s/try.py "$ledgermq" "localhost/$tag" "$work/example.yaml" "$work/example/net"
