#!/usr/bin/env bash
# Trains on a slice of a TPU pod of Google Cloud, over all of its hosts.
#
#   launch/tpu_pod.sh [--dry_run] NAME DATA_DIR CATEGORY[,PRESET] [--config.field=value ...]
#   launch/tpu_pod.sh [--dry_run] --stop NAME
#
# Makes the slice NAME unless there is one of this name, copies this checkout to
# all of its hosts, installs it and runs the same command on all of them. What
# the first host says is shown here; if the connection breaks the run goes on,
# in ~/draem/run.log of each host. --stop saves and ends it, and the same
# command goes on. --dry_run prints the commands and runs none. The slice stays,
# and costs, until `gcloud compute tpus tpu-vm delete NAME`.
#
# ZONE, TYPE and VERSION say where the slice is, and what; WORKDIR, and
# DATA_DIR, are where all hosts see them. This has not been run on a TPU pod: the
# tests compare what --dry_run prints.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n '4,17s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

# Says what it runs.
run() {
  printf '%q ' "$@" | sed 's/ $//'
  echo
  if [[ -z $dry_run ]]; then
    "$@"
  fi
}

dry_run= stop=
while [[ ${1:-} == --* ]]; do
  case $1 in
    --dry_run) dry_run=yes ;;
    --stop) stop=yes ;;
    *) usage ;;
  esac
  shift
done
if [[ $# -lt 1 || (-z $stop && $# -lt 3) ]]; then
  usage
fi

name=$1
zone=${ZONE:-us-central1-a}
type=${TYPE:-v5litepod-16}
version=${VERSION:-v2-alpha-tpuv5-lite}
gcloud=(gcloud compute tpus tpu-vm)
on_all=("$name" "--zone=$zone" --worker=all)

if [[ -n $stop ]]; then
  run "${gcloud[@]}" ssh "${on_all[@]}" \
    --command='kill -TERM $(cat draem/run.pid)'
  exit
fi

data_dir=$2
category=$3
if [[ -n $dry_run ]] ||
  ! "${gcloud[@]}" describe "$name" "--zone=$zone" >/dev/null 2>&1; then
  run "${gcloud[@]}" create "$name" "--zone=$zone" \
    "--accelerator-type=$type" "--version=$version"
fi

archive=${TMPDIR:-/tmp}/draem.tar.gz
run git archive --format=tar.gz "--output=$archive" HEAD
run "${gcloud[@]}" scp "$archive" "$name:draem.tar.gz" "--zone=$zone" --worker=all
run "${gcloud[@]}" ssh "${on_all[@]}" --command="mkdir -p draem && tar -xzf\
 draem.tar.gz -C draem && python3 -m venv draem/venv && draem/venv/bin/pip\
 install --quiet --editable draem 'jax[tpu]'"

command=(venv/bin/python -m draem_jax.main "--config=configs/mvtec.py:$category"
  "--workdir=${WORKDIR:-runs/${category//,/-}}" "--config.data.dir=$data_dir"
  "${@:4}")
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes
run "${gcloud[@]}" ssh "${on_all[@]}" --command="cd draem && (trap '' HUP;\
 exec $(printf '%q ' "${command[@]}") >run.log 2>&1) & run=\$!; echo \$run >draem/run.pid;\
 worker=\$(curl -s -H Metadata-Flavor:Google $metadata/agent-worker-number);\
 if [ \"\$worker\" = 0 ]; then tail --pid=\$run -n +1 -F draem/run.log; fi;\
 wait \$run"
