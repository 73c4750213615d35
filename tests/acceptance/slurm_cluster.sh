#!/bin/bash
# A real Slurm cluster (several slurmd "nodes", fake GPUs) on one host, for tests. Needs root; no systemd, no network.
#   slurm_cluster.sh install            apt-get the packages (Debian, Ubuntu); nothing to do where they are there
#   slurm_cluster.sh up                 boot from nothing (idempotent); prints the exports to use
#   slurm_cluster.sh down [--wipe]      cancel jobs, stop all daemons by pid file [, delete the state dir]
#   slurm_cluster.sh guard              wait for the end of stdin, then down --wipe: whoever holds the other end may be killed
#   slurm_cluster.sh status             daemons + sinfo; exit 0 only if every daemon is alive and every node answers
#   slurm_cluster.sh env                print 'export SLURM_CONF=...' lines (eval "$(slurm_cluster.sh env)")
#   slurm_cluster.sh ctld-stop|ctld-start
#   slurm_cluster.sh ctld-freeze|ctld-thaw        SIGSTOP/SIGCONT slurmctld (it takes connections and says nothing)
#   slurm_cluster.sh dbd-stop|dbd-start           slurmdbd, where there is one
#   slurm_cluster.sh node-kill NODE     SIGKILL slurmd + everything running on that node (power loss)
#   slurm_cluster.sh node-stop NODE     SIGTERM slurmd only (its jobs go on)
#   slurm_cluster.sh node-start NODE    start that node's slurmd again
#   slurm_cluster.sh node-freeze|node-thaw NODE   SIGSTOP/SIGCONT slurmd (unresponsive node)
# Knobs (environment):
#   SLURMLAB_DIR=${TMPDIR:-/tmp}/slurmgate-lab SLURMLAB_NODES=4  SLURMLAB_GPUS=4  SLURMLAB_GPU_TYPE=h100
#   SLURMLAB_CPUS=16  SLURMLAB_MEM=64000 (MB/node)  SLURMLAB_PORT=26817 (base; uses +0..+3)
#   SLURMLAB_NET=127.71.0   node i gets address $SLURMLAB_NET.i on loopback (i from 1)
#   SLURMLAB_DBD=0|1 (mariadb + slurmdbd: sacct, QOS; also for 'install')
#   SLURMLAB_USERS='a b' (more users, they must exist, that get an association with DBD=1)
#   SLURMLAB_CGROUP=0|1 (proctrack/cgroup + task/cgroup on cgroup v1: --mem enforced, OUT_OF_MEMORY)
#   SLURMLAB_MINJOBAGE=30   SLURMLAB_CRED_EXPIRE=5 (min 5; a requeued job waits this long; Slurm's default 120)
#   SLURMLAB_EXTRA='Key=Value\n...'  appended to slurm.conf
set -u
D=${SLURMLAB_DIR:-${TMPDIR:-/tmp}/slurmgate-lab}
N=${SLURMLAB_NODES:-4}; GPUS=${SLURMLAB_GPUS:-4}; GPUTYPE=${SLURMLAB_GPU_TYPE:-h100}
CPUS=${SLURMLAB_CPUS:-16}; MEM=${SLURMLAB_MEM:-64000}
PORT=${SLURMLAB_PORT:-26817}; NET=${SLURMLAB_NET:-127.71.0}
CGROUP=${SLURMLAB_CGROUP:-0}; DBD=${SLURMLAB_DBD:-0}
MINJOBAGE=${SLURMLAB_MINJOBAGE:-30}; CRED_EXPIRE=${SLURMLAB_CRED_EXPIRE:-5}; EXTRA=${SLURMLAB_EXTRA:-}
CTLD_PORT=$PORT SLURMD_PORT=$((PORT+1)) DBD_PORT=$((PORT+2)) MYSQL_PORT=$((PORT+3))
SLURM_USERS=${SLURMLAB_USERS:-}
H=$(hostname -s)
export SLURM_CONF=$D/etc/slurm.conf LC_ALL=C
export PATH=$PATH:/usr/sbin:/sbin

say() { echo "slurmlab: $*" >&2; }
BOOTING=0
die() { say "$*"; [ $BOOTING = 1 ] && { BOOTING=0; down; }; exit 1; } # a failed 'up' leaves no daemon behind

# alive PIDFILE NAME -> prints pid. A zombie is not alive (pid 1 of a container may reap late, so kill -0 lies).
alive() {
  local p
  [ -s "$1" ] || return 1
  read -r p <"$1" || [ -n "$p" ] || return 1
  pid_alive "$p" "$2" && echo "$p"
}
pid_alive() { # PID NAME
  local p=$1 st comm
  [ -r "/proc/$p/stat" ] || return 1
  comm=$(cat "/proc/$p/comm" 2>/dev/null) || return 1
  st=$(sed 's/.*) //' "/proc/$p/stat" 2>/dev/null | cut -c1) || return 1
  [ "$st" != Z ] && [ "$st" != X ] && [[ $comm == "$2"* ]]
}
wait_until() { # SECONDS CMD...
  local end=$((SECONDS + $1 + 1)); shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -ge $end ] && return 1; sleep 0.05; done
}
gone() { ! pid_alive "$1" "$2"; } # by pid: the daemons unlink their pid file before they are gone
stop_one() { # PIDFILE NAME [SIG]
  local p; p=$(alive "$1" "$2") || { rm -f "$1"; return 0; }
  kill "-${3:-TERM}" "$p"
  wait_until 10 gone "$p" "$2" || { say "$2 ($p) did not stop: SIGKILL"; kill -KILL "$p"; wait_until 3 gone "$p" "$2"; }
  rm -f "$1"
}
# pids of step and job processes of THIS cluster, optionally of one node: those in a node's UTS namespace
# (its id is noted at start; catches what daemonized away from Slurm too), and those whose environment
# has our SLURM_CONF and a SLURM_JOB_ID (containers with a UTS namespace of their own).
job_pids() {
  local n p f u
  for n in ${1:-$(cd "$D/run" 2>/dev/null && ls -- *.uts 2>/dev/null | sed 's/[.]uts$//')}; do
    [ -s "$D/run/$n.uts" ] || continue
    u=$(sed 's/[][]/\\&/g' "$D/run/$n.uts")
    for f in $(find /proc/[0-9]*/ns/uts -maxdepth 0 -lname "$u" 2>/dev/null); do
      p=${f#/proc/}; p=${p%%/*}
      # the kernel gives a namespace's id to another one once it is gone
      [ "$(nsenter -t "$p" -u hostname 2>/dev/null)" = "$n" ] && echo "$p"
    done
  done
  for f in $(grep -lszx "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ); do
    p=${f#/proc/}; p=${p%%/*}
    [ "$p" != $$ ] && grep -qsz '^SLURM_JOB_ID=' "$f" || continue
    [ -z "${1:-}" ] || grep -qszx "SLURMD_NODENAME=$1" "$f" || continue
    echo "$p"
  done
}

write_conf() {
  local i n dbdlines="AccountingStorageType=accounting_storage/none"
  local track="ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none"
  [ "$CGROUP" = 1 ] && track="ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/linux"
  mkdir -p "$D"/{etc,munge,run,log,state,spool,gpu} || die "cannot make $D"
  chmod 755 "$D" "$D/munge"
  [ -s "$D/munge/munge.key" ] || { (umask 077; head -c 128 /dev/urandom >"$D/munge/munge.key"); }
  [ "$DBD" = 1 ] && dbdlines="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$DBD_PORT
AccountingStoragePass=$D/munge/munge.sock
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment,job_script"
  {
    cat <<EOF
ClusterName=lab
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=$CTLD_PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$D/munge/munge.sock,cred_expire=$CRED_EXPIRE
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
$track
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.log
$dbdlines
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PriorityType=priority/basic
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=1
MinJobAge=$MINJOBAGE
KillWait=5
OverTimeLimit=0
InactiveLimit=0
Waittime=0
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=5
BatchStartTimeout=10
EOF
    for ((i = 1; i <= N; i++)); do
      echo "NodeName=n$i NodeHostname=n$i NodeAddr=$NET.$i Port=$SLURMD_PORT CPUs=$CPUS RealMemory=$MEM Gres=gpu:$GPUTYPE:$GPUS State=UNKNOWN"
    done
    cat <<EOF
PartitionName=gpu Nodes=n[1-$N] Default=YES MaxTime=02:00:00 DefaultTime=00:10:00 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=preempt Nodes=n[1-$N] MaxTime=04:00:00 DefaultTime=00:10:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 State=UP
PartitionName=short Nodes=n1 MaxTime=00:02:00 DefaultTime=00:01:00 PriorityTier=10 PreemptMode=OFF State=UP
EOF
    printf '%b\n' "$EXTRA"
  } >"$D/etc/slurm.conf"
  # CUDA_VISIBLE_DEVICES is only set when the GPU has a File= that is a character device;
  # symlinks to /dev/null will do, the index comes from the file's name.
  { for ((i = 1; i <= N; i++)); do
      mkdir -p "$D/gpu/n$i" "$D/spool/n$i"
      for ((n = 0; n < GPUS; n++)); do ln -sfn /dev/null "$D/gpu/n$i/nvidia$n"; done
      echo "NodeName=n$i Name=gpu Type=$GPUTYPE File=$D/gpu/n$i/nvidia[0-$((GPUS - 1))]"
    done; } >"$D/etc/gres.conf"
  # the nodes' own /etc/hosts (bind-mounted in each node's mount namespace)
  { cat /etc/hosts; for ((i = 1; i <= N; i++)); do echo "$NET.$i n$i"; done; } >"$D/etc/hosts"
  # where the machine has cgroup v1 hierarchies on /sys/fs/cgroup: memory limits -> OUT_OF_MEMORY
  printf 'CgroupPlugin=cgroup/v1\nConstrainRAMSpace=%s\n' "$([ "$CGROUP" = 1 ] && echo yes || echo no)" >"$D/etc/cgroup.conf"
  if [ "$DBD" = 1 ]; then
    (umask 077; cat >"$D/etc/slurmdbd.conf" <<EOF
DbdHost=$H
DbdAddr=127.0.0.1
DbdPort=$DBD_PORT
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/munge.sock
PidFile=$D/run/slurmdbd.pid
LogFile=$D/log/slurmdbd.log
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$MYSQL_PORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
CommitDelay=0
EOF
    )
  fi
}

start_munged() {
  alive "$D/munge/munged.pid" munged >/dev/null && return 0
  rm -f "$D/munge/munge.sock"*
  munged --key-file="$D/munge/munge.key" --socket="$D/munge/munge.sock" --pid-file="$D/munge/munged.pid" \
    --log-file="$D/munge/munged.log" --seed-file="$D/munge/munged.seed" --num-threads=2 9>&- </dev/null >>"$D/log/start.log" 2>&1 ||
    die "munged failed: $(tail -n 2 "$D/munge/munged.log" "$D/log/start.log" 2>/dev/null)"
}
mysql_ok() { mariadb-admin --no-defaults -uroot -S "$D/mysql/mysqld.sock" ping; }
dbd_ok() { (exec 3<>"/dev/tcp/127.0.0.1/$DBD_PORT") && sacctmgr -nP show cluster; }
start_dbd() {
  [ "$DBD" = 1 ] || return 0
  if ! alive "$D/run/mysqld.pid" mariadbd >/dev/null; then
    mkdir -p "$D/mysql"
    [ -d "$D/mysql/data/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$D/mysql/data" \
      --auth-root-authentication-method=normal --skip-test-db >"$D/log/mysql-install.log" 2>&1 9>&- || die "mariadb-install-db failed, see $D/log/mysql-install.log"
    setsid mariadbd --no-defaults --user=root --datadir="$D/mysql/data" --socket="$D/mysql/mysqld.sock" \
      --bind-address=127.0.0.1 --port="$MYSQL_PORT" --pid-file="$D/run/mysqld.pid" --skip-name-resolve \
      --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-lock-wait-timeout=900 \
      --innodb-flush-log-at-trx-commit=0 --performance-schema=OFF </dev/null >"$D/log/mysqld.log" 2>&1 9>&- &
    wait_until 30 mysql_ok || die "mariadbd did not start: $(tail -n 3 "$D/log/mysqld.log")"
    mariadb --no-defaults -uroot -S "$D/mysql/mysqld.sock" -e \
      "create database if not exists slurm_acct; create user if not exists slurm@'127.0.0.1' identified by 'slurm'; create user if not exists slurm@localhost identified by 'slurm'; grant all on slurm_acct.* to slurm@'127.0.0.1'; grant all on slurm_acct.* to slurm@localhost;" || die "cannot make the database"
  fi
  if ! alive "$D/run/slurmdbd.pid" slurmdbd >/dev/null; then
    slurmdbd 9>&- </dev/null >>"$D/log/start.log" 2>&1 || die "slurmdbd failed: $(tail -n 3 "$D/log/slurmdbd.log" "$D/log/start.log")"
    wait_until 30 dbd_ok || die "slurmdbd does not answer: $(tail -n 3 "$D/log/slurmdbd.log")"
    # the cluster must be known before slurmctld starts; gres/gpu becomes a known TRES only after it started
    sacctmgr -nP show cluster format=cluster 2>/dev/null | grep -qx lab || sacctmgr -iQ add cluster lab >>"$D/log/sacctmgr.log" 2>&1
  fi
}
setup_qos() {
  [ "$DBD" = 1 ] || return 0
  sacctmgr -nP show qos format=name | grep -qx tiny && return 0
  { sacctmgr -iQ add account lab cluster=lab description=lab organization=lab
    sacctmgr -iQ add qos tiny set MaxJobsPerUser=1 MaxSubmitJobsPerUser=3 MaxTRESPerUser=gres/gpu=4 MaxWall=00:30:00
    sacctmgr -iQ add qos gpu6 set MaxTRESPerUser=gres/gpu=6
    for u in root $SLURM_USERS; do
      sacctmgr -iQ add user "$u" account=lab cluster=lab
      sacctmgr -iQ modify user "$u" set qos=normal,tiny,gpu6 defaultqos=normal defaultaccount=lab
    done
    sacctmgr -iQ modify user root set adminlevel=admin
  } >>"$D/log/sacctmgr.log" 2>&1
}
ctld_ok() { alive "$D/run/slurmctld.pid" slurmctld && scontrol ping; }
start_ctld() {
  alive "$D/run/slurmctld.pid" slurmctld >/dev/null && return 0
  slurmctld 9>&- </dev/null >>"$D/log/start.log" 2>&1 || die "slurmctld failed: $(tail -n 3 "$D/log/start.log")"
  # it forks before it reads its state: rc 0 means little
  wait_until 10 ctld_ok || die "slurmctld does not answer: $(grep -E 'fatal|error' "$D/log/slurmctld.log" | tail -n 4)"
}
start_node() { # each node: own hostname, own /etc/hosts, own address on loopback
  alive "$D/run/slurmd.$1.pid" slurmd >/dev/null && return 0
  unshare --uts --mount sh -c "hostname $1 && mount --bind $D/etc/hosts /etc/hosts && readlink /proc/self/ns/uts >$D/run/$1.uts && exec slurmd -N $1" \
    9>&- </dev/null >>"$D/log/start.log" 2>&1 || die "slurmd $1 failed: $(tail -n 3 "$D/log/slurmd.$1.log" "$D/log/start.log")"
}
all_idle() { [ "$(sinfo -h -p gpu -t idle,mix,alloc -o %D | awk '{s+=$1} END{print s+0}')" = "$N" ]; }

print_env() {
  echo "export SLURM_CONF=$SLURM_CONF"
  echo "export SLURMLAB_DIR=$D"
}
locked() { mkdir -p "$D"; exec 9>"$D.lock"; flock -w 120 9 || die "another cluster.sh holds $D.lock"; }
saved_knobs() { # down/status/node-* use what 'up' used
  [ -s "$D/etc/knobs" ] && . "$D/etc/knobs"; return 0; }

up() {
  [ "$(id -u)" = 0 ] || die "run as root"
  for b in munged slurmctld slurmd unshare; do command -v $b >/dev/null || die "no $b: run '$0 install'"; done
  locked
  if alive "$D/run/slurmctld.pid" slurmctld >/dev/null; then saved_knobs # up twice: keep the running config, restart what died
  else
    write_conf
    printf 'N=%q GPUS=%q DBD=%q PORT=%q NET=%q CGROUP=%q\n' "$N" "$GPUS" "$DBD" "$PORT" "$NET" "$CGROUP" >"$D/etc/knobs"
    printf 'DBD_PORT=%q MYSQL_PORT=%q\n' "$DBD_PORT" "$MYSQL_PORT" >>"$D/etc/knobs"
  fi
  BOOTING=1
  start_munged; start_dbd; start_ctld; setup_qos
  local i; for ((i = 1; i <= N; i++)); do start_node "n$i"; done
  wait_until 20 all_idle || { sinfo >&2; die "nodes did not come up, see $D/log"; }
  print_env
}
down() {
  [ -d "$D" ] || return 0
  locked; saved_knobs
  local p i ps
  p=$(alive "$D/run/slurmctld.pid" slurmctld) && kill -CONT "$p" # a test may have left it frozen
  if [ -n "$p" ] && alive "$D/munge/munged.pid" munged >/dev/null; then
    timeout 10 scancel -Qf --state=PENDING --user="$(id -un)" >/dev/null 2>&1
    timeout 10 scancel -Q --user="$(id -un)" >/dev/null 2>&1
    wait_until 4 sh -c '[ -z "$(squeue -h -t R,CG -o %i)" ]'
  fi
  ps=""
  for ((i = 1; i <= N; i++)); do p=$(alive "$D/run/slurmd.n$i.pid" slurmd) && { kill -CONT "$p"; kill -TERM "$p"; ps="$ps $p"; }; done
  for p in $ps; do wait_until 10 gone "$p" slurmd || { say "slurmd $p did not stop: SIGKILL"; kill -KILL "$p"; }; done
  rm -f "$D"/run/slurmd.*.pid
  for _ in 1 2 3; do ps=$(job_pids); [ -n "$ps" ] || break; kill -KILL $ps 2>/dev/null; sleep 0.2; done
  rm -f "$D"/run/*.uts
  stop_one "$D/run/slurmctld.pid" slurmctld
  stop_one "$D/run/slurmdbd.pid" slurmdbd
  stop_one "$D/run/mysqld.pid" mariadbd
  stop_one "$D/munge/munged.pid" munged
  [ "$CGROUP" = 1 ] && for i in /sys/fs/cgroup/*/slurm_n*; do find "$i" -depth -type d -exec rmdir {} \; ; done 2>/dev/null
  [ "${1:-}" = --wipe ] && rm -rf "$D" "$D.lock"
  return 0
}
status() {
  saved_knobs
  local bad=0 i f
  for f in "munge/munged munged" "run/slurmctld slurmctld"; do set -- $f
    if p=$(alive "$D/$1.pid" "$2"); then echo "$2 up ($p)"; else echo "$2 DOWN"; bad=1; fi; done
  [ "$DBD" = 1 ] && for f in "run/mysqld mariadbd" "run/slurmdbd slurmdbd"; do set -- $f
    if p=$(alive "$D/$1.pid" "$2"); then echo "$2 up ($p)"; else echo "$2 DOWN"; bad=1; fi; done
  for ((i = 1; i <= N; i++)); do
    if p=$(alive "$D/run/slurmd.n$i.pid" slurmd); then echo "slurmd n$i up ($p)"; else echo "slurmd n$i DOWN"; bad=1; fi; done
  alive "$D/run/slurmctld.pid" slurmctld >/dev/null && { timeout 10 sinfo -N -p gpu -o '%N %o %T %G %E'; all_idle || bad=1; }
  return $bad
}
install_pkgs() {
  [ "$(id -u)" = 0 ] || die "run as root"
  local p="slurmctld slurmd slurm-client munge" b="sbatch slurmctld slurmd munged unshare"
  [ "$DBD" = 1 ] && p="$p slurmdbd mariadb-server" b="$b slurmdbd mariadbd"
  command -v $b >/dev/null && [ "$(command -v $b | wc -l)" = "$(wc -w <<<"$b")" ] && return 0
  command -v apt-get >/dev/null || die "no apt-get here: install Slurm (client, slurmctld, slurmd) and munge by hand"
  export DEBIAN_FRONTEND=noninteractive
  # start scripts must not run: a policy-rc.d saying 101 does that; one that is there already stays as it is
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    trap 'exit 130' INT TERM HUP
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
  fi
  # with the package lists that are there; a fresh image has none, an old one has stale ones
  apt_install $p || { say "refreshing the package lists"; apt-get -qq -o DPkg::Lock::Timeout=120 update && apt_install $p; }
}
apt_install() { apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$@" >&2; }
freeze() { local p; p=$(alive "$1" "$2") && kill -STOP "$p"; } # PIDFILE NAME
thaw() { local p; p=$(alive "$1" "$2") && kill -CONT "$p"; }
kill_node() {
  local p ps
  p=$(alive "$D/run/slurmd.$1.pid" slurmd) && kill -KILL "$p"
  for _ in 1 2 3; do ps=$(job_pids "$1"); [ -n "$ps" ] || break; kill -KILL $ps 2>/dev/null; sleep 0.1; done
  rm -f "$D/run/slurmd.$1.pid"
}

case "${1:-}" in
  install) install_pkgs ;;
  up) up ;;
  down) down "${2:-}" ;;
  guard) trap '' INT HUP; cat >/dev/null; down --wipe ;;
  status) status ;;
  env) print_env ;;
  ctld-stop) stop_one "$D/run/slurmctld.pid" slurmctld ;;
  ctld-start) saved_knobs; start_ctld ;;
  ctld-freeze) freeze "$D/run/slurmctld.pid" slurmctld ;;
  ctld-thaw) thaw "$D/run/slurmctld.pid" slurmctld ;;
  dbd-stop) stop_one "$D/run/slurmdbd.pid" slurmdbd ;;
  dbd-start) saved_knobs; start_dbd ;;
  node-stop) stop_one "$D/run/slurmd.$2.pid" slurmd ;;
  node-start) saved_knobs; start_node "$2" ;;
  node-kill) kill_node "$2" ;;
  node-freeze) freeze "$D/run/slurmd.$2.pid" slurmd ;;
  node-thaw) thaw "$D/run/slurmd.$2.pid" slurmd ;;
  *) sed -n '2,/^set -u/{/^#/p}' "$0"; exit 2 ;;
esac
