#!/bin/sh
# Installs what `make bench` compares with, where it can: nginx (as root, from the distribution), vllm-router (into
# .venv-bench). What cannot be had is said and left out of the comparison; this never fails.
set -u
cd "$(dirname "$0")/.." || exit 0

VLLM_ROUTER=vllm-router==0.1.17

if ! PATH="$PATH:/usr/sbin" command -v nginx >/dev/null; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        { apt-get -qq update && apt-get -qq install -y --no-install-recommends nginx-light; } >/dev/null 2>&1 ||
            echo "bench: nginx could not be installed" >&2
    else
        echo "bench: no nginx; as root: apt-get install nginx-light" >&2
    fi
fi

if [ ! -x .venv-bench/bin/vllm-router ]; then
    python=.venv/bin/python
    [ -x "$python" ] || python=${PYTHON:-python3}
    { "$python" -m venv .venv-bench &&
        .venv-bench/bin/python -m pip install --quiet --disable-pip-version-check "$VLLM_ROUTER"; } ||
        echo "bench: $VLLM_ROUTER could not be installed" >&2
fi
exit 0
