#!/usr/bin/env bash
# The smoke configuration through a real Slurm: one node, this machine, started here and stopped again.
#
#     make test-slurm                                  # the whole of it
#     tests/slurm/run.sh 'methods=[topk]'              # less of it: what follows goes to --config
#
# Needs root (slurmd does) and Debian's packages: apt-get install slurm-wlm munge. The cluster has no
# accounting and three partitions, of which jobs choose by what their rules ask for. Its GPU is none
# (/dev/null): Slurm gives it to one job at a time all the same.
set -euo pipefail

repository=$(cd "$(dirname "$0")/../.." && pwd)
for program in munged slurmctld slurmd snakemake; do
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || {
        echo "no $program; expected Debian's slurm-wlm and munge, and requirements-slurm.lock" >&2
        exit 1
    }
done
PATH=$PATH:/usr/sbin
cpus=${CPUS:-$(nproc)}
memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
place=$(mktemp -d)
daemons=()

stop() {
    # The order in which a cluster is left: no more jobs, no node, no control.
    scancel --state=RUNNING --state=PENDING --user="$(id -un)" 2>/dev/null || true
    for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do kill "${daemons[i]}" 2>/dev/null || true; done
    wait "${daemons[@]}" 2>/dev/null || true
    rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf
    if [ "${KEEP:-}" ]; then echo "left in $place"; else rm -rf "$place"; fi
}
# Where everybody looks for it: the plugin takes SLURM_CONF out of a job's environment.
export SLURM_CONF=/etc/slurm/slurm.conf
[ ! -e "$SLURM_CONF" ] || { echo "$SLURM_CONF is there: this machine has a cluster" >&2; exit 1; }
ln -s "$place/slurm.conf" "$place/gres.conf" /etc/slurm/
trap stop EXIT

mkdir -p "$place"/{bin,state,spool,run}
cat >"$place/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge.socket
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobCompType=jobcomp/filetxt
JobCompLoc=$place/jobs.txt
SchedulerParameters=sched_interval=2
ReturnToService=2
GresTypes=gpu
NodeName=$(hostname) CPUs=$cpus RealMemory=$memory Gres=gpu:1
PartitionName=short Nodes=ALL Default=YES MaxTime=60
PartitionName=long Nodes=ALL MaxTime=2880
PartitionName=gpu Nodes=ALL MaxTime=2880
CONF
echo 'Name=gpu File=/dev/null' >"$place/gres.conf"
cat >"$place/partitions.yaml" <<CONF
partitions:
  short: {max_runtime: 60}
  long: {max_runtime: 2880}
  gpu: {max_runtime: 2880, max_gpu: 1}
CONF
touch "$place/jobs.txt"
# Where the plugin had to wait ten seconds for an answer of Slurm's, it asks sacct in squeue's place, and
# forgets its jobs if that fails, as it does without accounting.
cat >"$place/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
exec squeue --states=all --noheader --format='%i|%T' --name "${@: -1}"
SACCT
chmod +x "$place/bin/sacct"
PATH=$place/bin:$PATH

(umask 077 && head -c 1024 /dev/urandom >"$place/munge.key")
munged --foreground --force --socket="$place/munge.socket" --key-file="$place/munge.key" \
    --pid-file="$place/munge.pid" --seed-file="$place/munge.seed" \
    --log-file="$place/munge.log" 2>"$place/munge.err" &
daemons+=($!)
slurmctld -D -f "$SLURM_CONF" 2>"$place/slurmctld.err" &
daemons+=($!)
slurmd -D -f "$SLURM_CONF" 2>"$place/slurmd.err" &
daemons+=($!)
for _ in $(seq 60); do
    [ "$(sinfo --noheader --format=%t 2>/dev/null | sort -u)" = idle ] && break
    sleep 1
done
sinfo || { tail -n 20 "$place"/*.err "$place"/*.log >&2; exit 1; }

cd "$repository"
# So may its jobs, in spite of what they ask for.
export L0PLANE_WITHOUT_GPU=1
snakemake --profile profiles/slurm --directory "$place/run" --configfile config/smoke.yaml \
    --config gpus=1 "$@" \
    --slurm-partition-config "$place/partitions.yaml" --max-threads "$cpus" --latency-wait 10 \
    --slurm-no-account --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5 \
    --seconds-between-status-checks 5 --slurm-keep-successful-logs --slurm-logdir "$place/logs"

test -s "$place/run/figures/smoke/figure2.png"
test -s "$place/run/results/smoke/claims.csv"
echo "jobs of each rule that ran in Slurm:"
for rule in "$place"/logs/*/; do echo "$(find "$rule" -type f | wc -l) $(basename "$rule")"; done
echo "jobs by partition and state:"
grep -oE '(Partition|JobState)=[^ ]+' "$place/jobs.txt" | paste - - | sort | uniq -c
! grep -E 'JobState=' "$place/jobs.txt" | grep -qv 'JobState=COMPLETED'
