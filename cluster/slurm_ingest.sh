#!/usr/bin/env bash
# A cohort taken in by an array of SLURM jobs, each on its own part of the people, then a job that makes the store of them.
# The words behind the script are those of `ketanet ingest`, the same for both:
#
#     words=(images healthy.zarr --source nifti --pattern '{subject}/*.nii.gz' --mask brain.nii.gz --global-signal)
#     array=$(sbatch --parsable --array=1-16 cluster/slurm_ingest.sh "${words[@]}")
#     sbatch --dependency="afterok:$array" --kill-on-invalid-dep=yes cluster/slurm_ingest.sh "${words[@]}"
#
# `--array=1-1000%50` keeps fifty parts under way. Where a part has failed (its output says why), the others are in: mend what
# it names, run that part again, then the last line. Of how many parts it is one has to be said then:
#
#     KETANET_PARTS=16 sbatch --array=3,7 cluster/slurm_ingest.sh "${words[@]}"
#
# KETANET_BIN    folder of the program ketanet; default: what the job's PATH has
# KETANET_PARTS  number of parts; default: the size of the array, which then is 1-n
#SBATCH --job-name=ketanet-ingest
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=4G
#SBATCH --time=04:00:00
set -euo pipefail

: "${SLURM_JOB_ID:?this is a job script: sbatch it}"
export PATH="${KETANET_BIN:+$KETANET_BIN:}$PATH"
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

step=(--finish)
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    if [ -z "${KETANET_PARTS:-}" ] && [ "$SLURM_ARRAY_TASK_MIN-$SLURM_ARRAY_TASK_MAX" != "1-$SLURM_ARRAY_TASK_COUNT" ]; then
        echo "error: the array is not 1-n; set KETANET_PARTS to the number of all parts" >&2
        exit 2
    fi
    step=(--part "$SLURM_ARRAY_TASK_ID/${KETANET_PARTS:-$SLURM_ARRAY_TASK_COUNT}")
fi
exec ketanet ingest --workers "${SLURM_CPUS_PER_TASK:-1}" "$@" "${step[@]}"
