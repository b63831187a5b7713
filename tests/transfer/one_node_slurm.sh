#!/usr/bin/env bash
# A Slurm of one node on this machine, for tests; needs root, slurm-wlm and munge.
#   tests/transfer/one_node_slurm.sh start DIR    writes DIR/slurm.conf, for SLURM_CONF, and starts the daemons
#   tests/transfer/one_node_slurm.sh stop DIR
set -eu
dir=$2
if [ "$1" = stop ]; then
    for daemon in slurmd slurmctld munged; do
        [ ! -f "$dir/$daemon.pid" ] || kill "$(cat "$dir/$daemon.pid")" || true
    done
    exit
fi
mkdir -p "$dir/state" "$dir/spool"
host=$(hostname -s)
read -r ctld_port slurmd_port <<<"$(python3 - <<'PORTS'
import socket
both = [socket.socket() for _ in range(2)]
[one.bind(('127.0.0.1', 0)) for one in both]
print(*(one.getsockname()[1] for one in both))
PORTS
)"
cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmdPort=$slurmd_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ReturnToService=2
KillWait=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$dir/slurm.conf
head -c 1024 /dev/urandom >"$dir/munge.key"
chmod 600 "$dir/munge.key"
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
slurmctld
slurmd
for _ in $(seq 60); do
    if sinfo --noheader --format=%T | grep -q idle; then
        exit 0
    fi
    sleep 0.5
done
echo "the node is not ready: $(sinfo --noheader --format=%T)" >&2
exit 1
