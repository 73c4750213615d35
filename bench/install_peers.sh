#!/bin/sh
# Installs what `make bench` compares with, where it can: nginx (as root, from the distribution); vllm-router,
# sglang-router and py-spy (into .venv-bench); LiteLLM's proxy (into .venv-bench-litellm: it pins what others need in
# other versions). What cannot be had is said and left out of the comparison; this never fails.
set -u
cd "$(dirname "$0")/.." || exit 0

VLLM_ROUTER=vllm-router==0.1.17
SGLANG_ROUTER=sglang-router==0.3.2
PY_SPY=py-spy==0.4.3
LITELLM='litellm[proxy]==1.106.0'

if ! PATH="$PATH:/usr/sbin" command -v nginx >/dev/null; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        { apt-get -qq update && apt-get -qq install -y --no-install-recommends nginx-light; } >/dev/null 2>&1 ||
            echo "bench: nginx could not be installed" >&2
    else
        echo "bench: no nginx; as root: apt-get install nginx-light" >&2
    fi
fi

python=.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}

# need ENVIRONMENT PROGRAM REQUIREMENT: another version than the pinned one is replaced
need() {
    package=${3%%[\[=]*}
    if [ -x "$1/bin/$2" ] && "$1/bin/python" -c "import sys, importlib.metadata as m
sys.exit(m.version('$package') != '${3##*==}')" 2>/dev/null; then
        return
    fi
    [ -x "$1/bin/python" ] || "$python" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check "$3" ||
        echo "bench: $3 could not be installed" >&2
}

need .venv-bench vllm-router "$VLLM_ROUTER"
need .venv-bench sglang-router "$SGLANG_ROUTER"
need .venv-bench py-spy "$PY_SPY"
need .venv-bench-litellm litellm "$LITELLM"
exit 0
