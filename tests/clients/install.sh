#!/usr/bin/env bash
# The clients that the acceptance tests run, each in an environment of its own under .clients/. One that fits its lock
# is left as it is, so a second call costs nothing.
#   tests/clients/install.sh [PYTHON]   PYTHON: 3.11 or newer, with pip; .venv/bin/python when left out
# Node comes from PyPI too, as a wheel: the SDK wants a newer one than distributions have, and a wheel needs no root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=$(cd "$root" && command -v "${1:-.venv/bin/python}")
[[ $python = /* ]] || python=$root/$python
clients=$root/.clients

stamp_of() { { "$python" -V; cat "$@"; } | sha256sum; }

# NAME: a virtual environment with what NAME.lock says, and nothing else
environment() {
  local directory=$clients/$1 lock=$here/$1.lock stamp
  stamp=$(stamp_of "$lock")
  [ "$(cat "$directory/.stamp" 2>/dev/null)" = "$stamp" ] && return
  rm -rf "$directory"
  "$python" -m venv --without-pip "$directory"
  # the lock is whole, so there is nothing to resolve
  "$python" -m pip --python "$directory/bin/python" install -qq --disable-pip-version-check --require-hashes --no-deps \
    --requirement "$lock"
  echo "$stamp" >"$directory/.stamp"
}

node_client() {
  environment node
  local directory=$clients/npm stamp
  stamp=$(stamp_of "$here/node.lock" "$here/package-lock.json")
  [ "$(cat "$directory/.stamp" 2>/dev/null)" = "$stamp" ] && return
  rm -rf "$directory"
  mkdir "$directory"
  cp "$here"/{package.json,package-lock.json,.npmrc} "$directory"
  (cd "$directory" && PATH=$clients/node/bin:$PATH npm ci --no-audit --no-fund --loglevel=error)
  echo "$stamp" >"$directory/.stamp"
}

mkdir -p "$clients"
# one after the other, they would take twice as long; a function in `if` or `||` would run on after a failure
pids=()
for name in openai2 openai3 langchain; do
  environment "$name" & pids+=($!)
done
node_client & pids+=($!)
failed=0
for pid in "${pids[@]}"; do
  wait "$pid" || failed=1
done
[ $failed = 0 ] || echo "tests/clients/install.sh: not every client could be installed; their tests say so" >&2
exit $failed
