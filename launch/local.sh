#!/usr/bin/env bash
# Trains on this machine, over every visible device.
#
#   launch/local.sh DATA_DIR [CATEGORY[,PRESET]] [--config.field=value ...]
#
# CATEGORY is a folder of DATA_DIR, or `all` (the default) for all of them, one
# after the other. Runs land in runs/CATEGORY; the same command goes on where a
# run was stopped. CUDA_VISIBLE_DEVICES limits the GPUs.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $# -lt 1 || $1 == -* ]]; then
  sed -n '4,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
data_dir=$1
shift
category=all
if [[ $# -gt 0 && $1 != -* ]]; then
  category=$1
  shift
fi

exec python -m draem_jax.main \
  --config="configs/mvtec.py:$category" \
  --workdir="${WORKDIR:-runs/${category//,/-}}" \
  --config.data.dir="$data_dir" \
  "$@"
