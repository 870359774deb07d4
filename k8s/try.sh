#!/usr/bin/env bash
# Builds the image with podman and runs the four pods of k8s/example as containers, with the settings,
# keys, users and mounts of the rendered StatefulSet, on a network with a name server that gives one name
# all their addresses. They must form a network, take what a gateway publishes, go on with one killed,
# find it again at another address, and stop in order. Needs root; installs what it needs on Debian.
set -euo pipefail
cd "$(dirname "$0")/.."
. k8s/tools.sh
if ! command -v podman >/dev/null || ! command -v runc >/dev/null || ! command -v strip >/dev/null ||
  ! [ -x /usr/lib/podman/aardvark-dns ] || ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then
  apt-get update -qq
  apt-get install -y -qq podman runc netavark aardvark-dns busybox-static binutils >/dev/null
fi

work=$(mktemp -d)
tag=ledgermq-try-$$
built=()
clean() {
  for image in "${built[@]}"; do podman rmi --force "$image" >/dev/null 2>&1 || true; done
  rm -rf "$work"
}
trap clean EXIT
image() {
  # Without layers nothing but the image itself is left.
  podman --runtime runc build --quiet --layers=false --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --tag "$tag-$1" "${@:2}" >/dev/null
  built=("localhost/$tag-$1" "${built[@]}")
}

# What stands in for the images of registries: the libraries of the program, and a shell with a cargo that
# has the program ready and looks whether it is given the source.
mkdir -p "$work/runtime" "$work/build/bin"
for library in $(ldd "$ledgermq" | grep -o '/[^ ]*'); do
  install -D "$(realpath "$library")" "$work/runtime$library"
done
install "$(command -v busybox)" "$work/build/bin/busybox"
for applet in sh mkdir cp test ls sort tr; do ln -s busybox "$work/build/bin/$applet"; done
strip -o "$work/build/bin/program" "$ledgermq"
cat >"$work/build/bin/cargo" <<'END'
#!/bin/sh
set -e
test "$*" = "build --release --locked --bin ledgermq"
test "$(ls -A | sort | tr '\n' ' ')" = ".cargo Cargo.lock Cargo.toml benches src "
mkdir -p target/release
cp /bin/program target/release/ledgermq
END
chmod +x "$work/build/bin/cargo"
printf 'FROM scratch\nCOPY . /\nENV PATH=/bin\n' >"$work/Dockerfile"
for part in runtime build; do image "$part" --file "$work/Dockerfile" "$work/$part"; done
image node --file k8s/Dockerfile --build-arg "BUILD=localhost/$tag-build" --build-arg "RUNTIME=localhost/$tag-runtime" .

render "$work"
"$tools/venv/bin/python" k8s/try.py "$ledgermq" "localhost/$tag-node" "$work/example.yaml" "$work/example/net"
