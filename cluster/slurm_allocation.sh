#!/usr/bin/env bash
# A whole run in one SLURM job, for sites where jobs may not submit jobs, or where queues are long:
#
#     sbatch cluster/slurm_allocation.sh run study.toml --out results
#     sbatch --nodes=4 --ntasks=64 --time=12:00:00 cluster/slurm_allocation.sh map healthy.zarr coordinates.tsv --out group.zarr
#
# The job holds the scheduler, a worker process for each task of SLURM, and the command itself. A job that reached its time
# limit is submitted again with the same words: it goes on where it stopped.
#
# KETANET_BIN        folder of the programs ketanet, dask and python; default: what the job's PATH has
# KETANET_INTERFACE  network that the nodes meet on, such as ib0; default: the one that routes outwards
#SBATCH --job-name=ketanet
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=4G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@60
set -euo pipefail

export PATH="${KETANET_BIN:+$KETANET_BIN:}$PATH"
export DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=10    # tasks may lose their worker so often
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

# where all nodes of the job meet: certificates and the scheduler's address, readable by their owner only
shared=$(mktemp -d "${SLURM_SUBMIT_DIR:-$PWD}/.ketanet-${SLURM_JOB_ID:?this is a job script: sbatch it}.XXXXXX")
pids=()
leave() {
    trap - EXIT TERM
    # the command first, while the others are there: it says how to go on, and clears up
    if [ -n "${command:-}" ]; then kill "$command" 2>/dev/null || true; wait "$command" 2>/dev/null || true; fi
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$shared"
}
trap leave EXIT
trap 'leave; exit 143' TERM

ketanet cluster certs "$shared/tls"
tls=(--tls-ca-file "$shared/tls/ca.pem" --tls-cert "$shared/tls/cert.pem" --tls-key "$shared/tls/key.pem")

address_here() { python -c 'import sys; from distributed.utils import get_ip_interface as ip; print(ip(sys.argv[1]))' "$1"; }
host=${KETANET_INTERFACE:+tls://$(address_here "$KETANET_INTERFACE")}
dask scheduler --host "${host:-tls://}" --port 0 --dashboard-address 127.0.0.1:0 \
    --scheduler-file "$shared/scheduler.json" "${tls[@]}" >"$shared/scheduler.log" 2>&1 &
pids+=($!)
for _ in $(seq 600); do [ -s "$shared/scheduler.json" ] && break; sleep 0.1; done
[ -s "$shared/scheduler.json" ] || { echo "the scheduler did not start:" >&2; cat "$shared/scheduler.log" >&2; exit 1; }

# MB of a worker: its share of the node's (sbatch --mem), else of its CPUs' (--mem-per-cpu)
nodes=${SLURM_JOB_NUM_NODES:-1} tasks=${SLURM_NTASKS:-1}
memory=$(( ${SLURM_MEM_PER_CPU:-4096} * ${SLURM_CPUS_PER_TASK:-1} ))
if [ -n "${SLURM_MEM_PER_NODE:-}" ]; then memory=$(( SLURM_MEM_PER_NODE / ((tasks + nodes - 1) / nodes) )); fi
memory=$(( memory * 9 / 10 ))
srun --overlap --kill-on-bad-exit=0 dask worker --scheduler-file "$shared/scheduler.json" "${tls[@]}" \
    ${KETANET_INTERFACE:+--interface "$KETANET_INTERFACE"} \
    --nthreads 1 --memory-limit "${memory}MB" --no-dashboard --dashboard-address 127.0.0.1:0 --death-timeout 60 \
    --local-directory "${TMPDIR:-/tmp}" >"$shared/workers.log" 2>&1 &
pids+=($!)

cat >"$shared/cluster.toml" <<TOML
kind = "address"
scheduler_file = "scheduler.json"
workers = ${SLURM_NTASKS:-1}
[tls]
ca = "tls/ca.pem"
cert = "tls/cert.pem"
key = "tls/key.pem"
TOML

status=0
# behind, since bash looks at signals only when a command in front has ended
ketanet "$@" --cluster "$shared/cluster.toml" &
command=$!
wait "$command" || status=$?
if [ "$status" -gt 2 ] || [ "$status" -eq 1 ]; then tail -n 5 "$shared/workers.log" >&2; fi
exit "$status"
