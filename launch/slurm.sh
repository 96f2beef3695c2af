#!/usr/bin/env bash
# Trains on a cluster that Slurm runs.
#
#   sbatch [OPTIONS] launch/slurm.sh DATA_DIR CATEGORY[,PRESET] [--config.field=value ...]
#   sbatch --array=1-15 [OPTIONS] launch/slurm.sh DATA_DIR all[,PRESET] [--config.field=value ...]
#   sbatch --array=1-75 [OPTIONS] launch/slurm.sh study configs/table3.py [--config.field=value ...]
#
# Submit it from the checkout. One run takes all devices of the job, over as
# many nodes as --nodes says. With --array each task takes one category of
# DATA_DIR, by the alphabet, or one run of a study, in the order of --list; the
# last to end leaves the table of all. WORKDIR names the folder, which all nodes
# must see; runs/CATEGORY or studies/NAME by default. OPTIONS are sbatch's:
# --partition, --time, --nodes=2 --gpus-per-node=8 --cpus-per-task=32, ...
#
# Two minutes before the time limit the run saves and is queued again. So it is
# after `scancel --batch --signal=USR1 JOB`, and 20 times at most after what may
# pass, status 75; `scancel --signal=TERM JOB` saves and ends it. The same sbatch
# command, or `scontrol requeue JOB`, goes on.
#SBATCH --job-name=draem
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [[ $# -lt 2 || $1 == -* || $2 == -* ]]; then
  sed -n '4,18s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
# Slurm runs a copy of this file.
cd "${SLURM_SUBMIT_DIR:?submit this file with sbatch}"

only=()
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  only=("--only=$SLURM_ARRAY_TASK_ID")
fi
if [[ $1 == study ]]; then
  name=$(basename "${2%%:*}" .py)
  workdir=${WORKDIR:-studies/$name}
  command=(python -m draem_jax.study "--config=$2" "--workdir=$workdir" "${@:3}")
else
  workdir=${WORKDIR:-runs/${2//,/-}}
  command=(python -m draem_jax.main "--config=configs/mvtec.py:$2"
    "--workdir=$workdir" "--config.data.dir=$1" "${@:3}")
fi

# One process a node, with all of its devices; JAX would give it the first only.
if [[ -z ${JAX_LOCAL_DEVICE_IDS:-} && ${SLURM_GPUS_ON_NODE:-0} -gt 0 ]]; then
  JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
# What srun no longer takes over from sbatch by itself.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi

warned=
warn() {
  warned=yes
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap warn USR1

srun --wait=120 "${command[@]}" "${only[@]}" &
step=$!
status=0
while kill -0 "$step" 2>/dev/null; do
  status=0
  wait "$step" || status=$?
done
# On status 75, what failed may pass: a bucket out of reach, say.
if [[ (-n $warned && $status == 143) ||
  ($status == 75 && ${SLURM_RESTART_COUNT:-0} -lt 20) ]]; then
  echo 'queued again, to go on from there' >&2
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60
fi
if [[ $1 == study && -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  flock "$workdir/.tables.lock" "${command[@]}" --tables || true
fi
exit "$status"
