#!/bin/bash
# Container runtimes that run without hardware of their own, for the tests that put an engine into one (Debian, Ubuntu;
# root). What cannot be had is left out, and its tests say so.
#   runtimes.sh install     apt-get what is missing
set -u
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
say() { echo "runtimes: $*" >&2; }
apt_install() { apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$@" >/dev/null 2>&1; }

wanted() {
  command -v ch-run >/dev/null || echo charliecloud-runtime
  command -v podman >/dev/null && command -v runc >/dev/null || echo podman runc
}

case "${1:-}" in
  install)
    packages=$(wanted)
    [ -n "$packages" ] || exit 0
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { say "missing, and only root can install with apt-get: $packages"; exit 1; }
    # shellcheck disable=SC2086  # one argument each
    apt_install $packages || { apt-get -qq -o DPkg::Lock::Timeout=120 update >/dev/null 2>&1; apt_install $packages; } ||
      { say "could not be installed: $packages"; exit 1; } ;;
  *) sed -n '2,/^set -u/{/^#/p}' "$0"; exit 2 ;;
esac
