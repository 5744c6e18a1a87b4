#!/usr/bin/env bash
# A throw-away Slurm cluster on the loopback: several nodes on one Linux machine, for tests and to try `convrepro submit`.
#
#   slurm/local_cluster.sh install [--accounting]   install Debian's Slurm (needs root)
#   slurm/local_cluster.sh start [KNOBS]            start what is not running yet, and wait until every node is there;
#                                                   exits with 4 where Slurm is not installed
#   eval "$(slurm/local_cluster.sh env)"            let sbatch, squeue, convrepro submit of this shell talk to it
#   slurm/local_cluster.sh status                   nodes and jobs; exits with 3 where nothing runs
#   slurm/local_cluster.sh stop [--purge]           cancel its jobs and end it; --purge removes its folder too
#
# KNOBS of start; a folder keeps those that its cluster was first started with:
#   --nodes N        nodes n1, n2, ...; at most 48 (2)
#   --cpus N         CPUs of each, whatever the machine has (2)
#   --max-array N    MaxArraySize: the highest array index is one less (1001)
#   --port N         first of 100 ports of the loopback (some that are free)
#   --accounting     with slurmdbd and MariaDB, so that sacct works; takes seconds more to start
# For every command: --folder DIR, where configuration, keys, state and logs are (~/.cache/convrepro-slurm). Clusters in
# different folders run side by side. Nothing outside the folder is written, and only processes are stopped whose pid
# files stand in it.
#
# Partitions: `main`, and `urgent`, whose jobs preempt those of main: these get their --signal, SIGTERM 10 seconds
# later, and are requeued. Jobs run as the user who started the cluster.

set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

PACKAGES=(slurm-wlm slurmctld slurmd munge)
ACCOUNTING_PACKAGES=(slurmdbd slurm-wlm-mysql-plugin mariadb-server)
GRACE=10 # seconds between a preempted job's own signal and SIGTERM
MARKER=local_cluster.settings

die() {
  echo "local_cluster.sh: $*" >&2
  exit 1
}

# ---------------------------------------------------------------- words and settings

folder=${XDG_CACHE_HOME:-$HOME/.cache}/convrepro-slurm
# From `port` on: slurmctld, slurmd of each node, slurmdbd, and jobs (task_prolog below).
nodes='' cpus='' max_array='' port='' accounting='' purge=''

whole() { # NAME VALUE LEAST MOST
  if ! [[ $2 =~ ^[0-9]{1,7}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then die "$1 $2: must be a number from $3 to $4"; fi
  echo "$((10#$2))"
}

read_words() {
  while (($#)); do
    case $1 in
      --accounting) accounting=yes ;;
      --purge) purge=yes ;;
      --folder | --nodes | --cpus | --max-array | --port)
        (($# > 1)) || die "$1 needs a value"
        case $1 in
          --folder) folder=$(realpath -m -- "$2") ;;
          --nodes) nodes=$(whole "$1" "$2" 1 48) ;;
          --cpus) cpus=$(whole "$1" "$2" 1 1024) ;;
          --max-array) max_array=$(whole "$1" "$2" 2 1000001) ;;
          --port) port=$(whole "$1" "$2" 1024 65436) ;;
        esac
        shift
        ;;
      *) die "$1 is not a word of it; see: $0 help" ;;
    esac
    shift
  done
}

# Each line of the marker file is NAME=VALUE of one knob.
kept() { sed -n "s/^$1=//p" "$folder/$MARKER"; }

settle() { # every knob gets a value: as given, as the folder keeps it, or the default
  local name
  if [[ -e $folder/$MARKER ]]; then
    for name in nodes cpus max_array port accounting; do
      [[ -z ${!name} || ${!name} == "$(kept $name)" ]] ||
        die "$folder keeps a cluster with $name=$(kept $name), not ${!name}; stop --purge it, or take another --folder"
      printf -v "$name" %s "$(kept $name)"
    done
    return
  fi
  [[ -z $(ls -A "$folder" 2>/dev/null) ]] || die "$folder holds other files; take an empty or new --folder"
  ((${#folder} <= 80)) || die "$folder is too long for the sockets in it: at most 80 characters"
  [[ $folder =~ ^[A-Za-z0-9/._+-]+$ ]] || die "$folder: only letters, digits and / . _ + - can stand in slurm.conf"
  : "${nodes:=2}" "${cpus:=2}" "${max_array:=1001}" "${accounting:=no}"
  if [[ -z $port ]]; then
    port=$(free_ports)
  else
    are_free "$port" || die "--port $port: one of the ports $port to $((port + nodes + 1)) is in use"
  fi
  mkdir -p "$folder"
  for name in nodes cpus max_array port accounting; do echo "$name=${!name}"; done >"$folder/$MARKER"
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

are_free() { # BASE: nobody listens on a port that a cluster with this base takes
  local i
  for ((i = 0; i <= nodes + 1; i++)); do ! listening $(($1 + i)) || return 1; done
}

free_ports() { # a base below the ports that systems hand out
  local base
  for _ in {1..50}; do
    base=$((20000 + RANDOM % 120 * 100))
    are_free "$base" && echo "$base" && return
  done
  die "found no free ports between 20000 and 32000; give --port"
}

# ---------------------------------------------------------------- packages

wanted() {
  echo "${PACKAGES[@]}"
  [[ $accounting != yes ]] || echo "${ACCOUNTING_PACKAGES[@]}"
}

require_programs() {
  local programs=(munged slurmctld slurmd sinfo) program missing=()
  [[ $accounting != yes ]] || programs+=(slurmdbd mariadbd sacct)
  for program in "${programs[@]}"; do command -v "$program" >/dev/null || missing+=("$program"); done
  ((${#missing[@]} > 0)) || return 0
  echo "local_cluster.sh: ${missing[*]} not found; on Debian or Ubuntu, as root: apt-get update &&" \
    "apt-get install --no-install-recommends $(wanted | paste -sd ' ')" >&2
  exit 4
}

install_packages() {
  local line
  line="apt-get install --no-install-recommends $(wanted | paste -sd ' ')"
  command -v apt-get >/dev/null || die "there is no apt-get here; install Slurm, munge (and MariaDB) by other means"
  ((EUID == 0)) || die "needs root: sudo $line"
  # shellcheck disable=SC2086 # the line is words
  DEBIAN_FRONTEND=noninteractive $line -y -o DPkg::Lock::Timeout=300
}

# ---------------------------------------------------------------- configuration

write_configuration() {
  local host user memory i auth
  host=$(hostname -s) user=$(id -un)
  memory=$(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
  # cred_expire is also how long a requeued job waits; below 5 Slurm takes its default, 120
  auth="socket=$folder/munge/socket,cred_expire=5"
  mkdir -p "$folder"/{munge,state,spool,log,run}
  chmod 755 "$folder"/*/
  [[ -s $folder/munge/key ]] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")

  # The nodes' names do not resolve, and jobs of several clusters with one number must not meet: this is where a task
  # finds rank 0 of torch.distributed.
  cat >"$folder/task_prolog" <<END
#!/bin/sh
echo export MASTER_ADDR=127.0.0.1
echo export MASTER_PORT=\$(($port + $nodes + 2 + SLURM_JOB_ID % (98 - $nodes)))
END
  chmod 755 "$folder/task_prolog"

  {
    cat <<END
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=$auth
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
TaskProlog=$folder/task_prolog
MailProg=/bin/true
MaxArraySize=$max_array

# several nodes on one machine, none of them limited by cgroups
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none

# quick to schedule, to end and to requeue; finished jobs stay visible for an hour
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PriorityType=priority/basic
KillWait=5
InactiveLimit=0
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=60
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/jobs.txt
END
    if [[ $accounting == yes ]]; then
      echo "AccountingStorageType=accounting_storage/slurmdbd"
      echo "AccountingStorageHost=127.0.0.1"
      echo "AccountingStoragePort=$((port + nodes + 1))"
      echo "AccountingStoragePass=$folder/munge/socket"
    else
      echo "AccountingStorageType=accounting_storage/none"
    fi
    echo
    for ((i = 1; i <= nodes; i++)); do
      echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$cpus RealMemory=$memory"
    done
    echo "PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=$GRACE"
    echo "PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF"
  } >"$folder/slurm.conf"

  [[ $accounting == yes ]] || return 0
  (umask 077 && cat >"$folder/slurmdbd.conf") <<END
AuthType=auth/munge
AuthInfo=$auth
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + nodes + 1))
SlurmUser=$user
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$user
StorageLoc=slurm_acct_db
END
}

# ---------------------------------------------------------------- processes, by their pid files

running() { # NAME, such as slurmd-n1: its process is there, is that program, and is not a zombie
  local status
  status=$({ cat "/proc/$(cat "$folder/run/$1.pid")/status"; } 2>/dev/null) || return 1
  [[ $status =~ Name:[[:space:]]*${1%%-*}[[:space:]] && ! $status =~ State:[[:space:]]*Z ]]
}

wait_for() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || { echo "local_cluster.sh: $what does not answer; logs: $folder/log" >&2 && return 1; }
    sleep 0.1
  done
}

gone() { ! running "$1"; }

end_process() { # NAME
  local pid
  if running "$1"; then
    pid=$(<"$folder/run/$1.pid")
    kill "$pid" 2>/dev/null || true
    wait_for 10 "the end of $1" gone "$1" 2>/dev/null || kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$folder/run/$1.pid"
}

start_munge() {
  running munged && return
  rm -f "$folder"/munge/socket*
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/run/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" >/dev/null 2>&1
  wait_for 60 munged munge -n -S "$folder/munge/socket"
}

start_accounting() {
  local user
  user=$(id -un)
  if ! running mariadbd; then
    [[ -d $folder/mysql/mysql ]] ||
      mariadb-install-db --no-defaults --user="$user" --datadir="$folder/mysql" --skip-test-db \
        --auth-root-authentication-method=socket --auth-root-socket-user="$user" >"$folder/log/mariadb-install.log" 2>&1
    setsid mariadbd --no-defaults --user="$user" --datadir="$folder/mysql" --socket="$folder/run/mysql.sock" \
      --pid-file="$folder/run/mariadbd.pid" --skip-networking --innodb-buffer-pool-size=128M \
      --innodb-flush-log-at-trx-commit=0 >"$folder/log/mariadbd.log" 2>&1 </dev/null &
    wait_for 60 mariadbd mariadb-admin --no-defaults --user="$user" --socket="$folder/run/mysql.sock" ping
  fi
  if ! running slurmdbd; then
    MYSQL_UNIX_PORT=$folder/run/mysql.sock slurmdbd
    wait_for 60 slurmdbd sacctmgr -i list cluster
    sacctmgr -i add cluster local >/dev/null || true
    sacctmgr -i add account default >/dev/null || true
    sacctmgr -i add user "$user" account=default >/dev/null || true
  fi
}

nodes_ready() { (($(sinfo -h -N -p main -t idle,alloc,mix -o %N | wc -l) == nodes)); }

# ---------------------------------------------------------------- commands

start() {
  local i
  require_programs
  settle
  export SLURM_CONF=$folder/slurm.conf
  trap stop EXIT # one that did not start as a whole is ended
  [[ -e $SLURM_CONF ]] || write_configuration
  start_munge
  [[ $accounting == no ]] || start_accounting
  running slurmctld || slurmctld
  for ((i = 1; i <= nodes; i++)); do
    mkdir -p "$folder/spool/n$i"
    running "slurmd-n$i" || slurmd -N "n$i"
  done
  wait_for 60 "a node" nodes_ready
  trap - EXIT
  sinfo
}

stop() {
  local file end
  [[ -e $folder/$MARKER ]] || die "there is no cluster in $folder"
  export SLURM_CONF=$folder/slurm.conf
  if running slurmctld; then # its jobs first, so that no step outlives its node
    squeue -h -o %A | sort -u | xargs -r scancel || true
    end=$((SECONDS + 15))
    while [[ -n $(squeue -h 2>/dev/null) ]] && ((SECONDS < end)); do sleep 0.1; done
  fi
  for file in "$folder"/run/slurmd-*.pid; do
    [[ ! -e $file ]] || end_process "$(basename "$file" .pid)"
  done
  for file in slurmctld slurmdbd mariadbd munged; do end_process "$file"; done
  [[ $purge != yes ]] || rm -rf -- "$folder"
}

status() {
  export SLURM_CONF=$folder/slurm.conf
  if [[ ! -e $folder/$MARKER ]] || ! running slurmctld; then
    echo "no cluster runs in $folder"
    exit 3
  fi
  sinfo -N
  squeue
}

print_env() {
  [[ -e $folder/$MARKER ]] || die "there is no cluster in $folder; start it first"
  echo "export SLURM_CONF=$folder/slurm.conf"
}

command=${1:-help}
(($# == 0)) || shift
case $command in
  help | -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
  install | start | stop | status | env)
    read_words "$@"
    case $command in
      install) install_packages ;;
      env) print_env ;;
      *) "$command" ;;
    esac
    ;;
  *) die "$command is not a command of it; see: $0 help" ;;
esac
