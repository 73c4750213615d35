#!/bin/bash
# PostgreSQL for the tests, which start servers of their own (tests/postgres_fixture.py). Needs root; no systemd.
#   postgres.sh install     apt-get the package (Debian, Ubuntu); nothing to do where it is there
set -u
export LC_ALL=C
say() { echo "postgres: $*" >&2; }
die() { say "$*"; exit 1; }

is_there() { command -v postgres >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }
apt_install() { apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$@" >&2; }
install_pkgs() {
  is_there && return 0
  [ "$(id -u)" = 0 ] || die "run as root"
  command -v apt-get >/dev/null || die "no apt-get here: install PostgreSQL's server by hand"
  export DEBIAN_FRONTEND=noninteractive
  # start scripts must not run: a policy-rc.d saying 101 does that; one that is there already stays as it is
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
  fi
  apt_install postgresql || { say "refreshing the package lists"; apt-get -qq -o DPkg::Lock::Timeout=120 update && apt_install postgresql; }
  is_there || die "the package postgresql brought no server"
}

case "${1:-}" in
  install) install_pkgs ;;
  *) sed -n '2,/^set -u/{/^#/p}' "$0"; exit 2 ;;
esac
