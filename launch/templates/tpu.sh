#!/bin/bash
# {{ name }}: m4 on all hosts of a TPU slice, as a queued resource. Rendered by launch/render.py.
# Needs m4 on the machines' image, or an installation step before the last command, and a work
# directory that outlives the slice. A slice that is taken away is queued for again.
set -uo pipefail
delete() { gcloud compute tpus queued-resources delete {{ name }} --zone={{ zone }} --force --quiet; }
state() {
  gcloud compute tpus queued-resources describe {{ name }} --zone={{ zone }} \
    --format='value(state.state)'
}
run() {
  gcloud compute tpus queued-resources create {{ name }} --node-id={{ name }} --zone={{ zone }} \
    --accelerator-type={{ accelerator }} --runtime-version={{ runtime }}{{ " --spot" if spot }} || return 2
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in FAILED | SUSPENDED) return 75 ;; esac
    sleep 30
  done
  gcloud compute tpus tpu-vm ssh {{ name }} --zone={{ zone }} --worker=all \
    --command={{ remote }}
}
trap 'delete; exit 75' INT TERM
for ((start = 1; ; start++)); do
  run
  code=$?
  delete
  case $code in
    7 | 75 | 134 | 137 | 143 | 255) ;; # 255: ssh lost the machine
    *) exit $code ;;
  esac
  if [ $start -gt {{ restarts }} ]; then
    echo "m4: {{ restarts }} restarts, giving up (exit code $code)" >&2
    exit $code
  fi
done
