#!/usr/bin/env bash
# Trains on this machine, over every visible device.
#
#   launch/local.sh DATA_DIR [CATEGORY[,PRESET]] [--config.field=value ...]
#   launch/local.sh study configs/table3.py [--config.field=value ...]
#
# CATEGORY is a folder of DATA_DIR, which takes all devices, or `all` (the
# default): one process a device then, and categories in turn, as a study takes
# its runs. --processes=N says otherwise; --processes=1 gives each category all
# devices. Runs land in runs/CATEGORY, or in WORKDIR; the same command goes on
# where a run was stopped. CUDA_VISIBLE_DEVICES limits the GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $# -lt 1 || $1 == -* || ($1 == study && $# -lt 2) ]]; then
  sed -n '4,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
if [[ $1 == study ]]; then
  name=$(basename "${2%%:*}" .py)
  exec python -m draem_jax.study \
    --config="$2" --workdir="${WORKDIR:-studies/$name}" "${@:3}"
fi
data_dir=$1
shift
category=all
if [[ $# -gt 0 && $1 != -* ]]; then
  category=$1
  shift
fi
processes=1
if [[ ${category%%,*} == all ]]; then
  processes=0 # One a device.
fi

exec python -m draem_jax.main \
  --config="configs/mvtec.py:$category" \
  --workdir="${WORKDIR:-runs/${category//,/-}}" \
  --config.data.dir="$data_dir" \
  --processes="$processes" \
  "$@"
