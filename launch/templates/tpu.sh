#!/bin/bash
# {{ name }}: m4 on all hosts of a TPU slice, as a queued resource. Rendered by launch/render.py.
# Needs m4 on the machines' image, or an installation step before the last command, and a work
# directory that outlives the slice. A slice that is taken away is queued for again. A resource that
# this script has not made itself it never deletes.
set -uo pipefail
made=no # yes: there is something to delete; busy: soon known
ssh= stopped=
resources() { # a signal must not interrupt it, or nobody would know what there is
  (
    trap '' INT TERM HUP
    exec gcloud compute tpus queued-resources "$@" --zone={{ zone }}
  )
}
create() {
  made=busy
  if resources create {{ name }} --node-id={{ name }} \
    --accelerator-type={{ accelerator }} --runtime-version={{ runtime }}{{ " --spot" if spot }}; then
    made=yes
    [ -z "$stopped" ] || stop
  else
    made=no
    echo "m4: {{ name }}: could not be made; nothing was deleted. If another run has this name, give" \
      "render.py another --name" >&2
    return 2
  fi
}
delete() {
  [ $made = yes ] || return 0
  made=busy
  if resources delete {{ name }} --force --quiet; then
    made=no
  else
    echo "m4: {{ name }}: could not be deleted, and may cost; delete it by hand" >&2
    return 1
  fi
}
run() {
  local now misses=0
  create || return
  while true; do
    if now=$(resources describe {{ name }} --format='value(state.state)') && [ -n "$now" ]; then
      misses=0
    else
      misses=$((misses + 1))
    fi
    case "$now" in
      ACTIVE) break ;;
      FAILED | SUSPENDED) return 75 ;;
    esac
    if [ $misses -ge 20 ]; then
      echo "m4: {{ name }}: 20 times in a row gcloud did not say its state" >&2
      return 1
    fi
    sleep 30
  done
  # In the background, or a signal would be heard only when the run is through.
  gcloud compute tpus tpu-vm ssh {{ name }} --zone={{ zone }} --worker=all \
    --command={{ remote }} <&0 &
  ssh=$!
  wait $ssh
}
stop() {
  stopped=yes
  [ $made != busy ] || return
  [ -z "$ssh" ] || kill $ssh 2>/dev/null
  delete
  exit 143 # not 75: the machines are taken away without having been asked to save
}
trap stop INT TERM HUP
for ((start = 1; ; start++)); do
  run
  code=$?
  ssh=
  delete || exit $code
  [ -z "$stopped" ] || exit 143
  # Preempted, hung, or killed by a signal, but for that of Ctrl-C; 255: ssh lost the machine.
  if [ $code -ne 7 ] && [ $code -ne 75 ] && { [ $code -lt 128 ] || [ $code -eq 130 ]; }; then
    exit $code
  fi
  if [ $start -gt {{ restarts }} ]; then
    echo "m4: {{ restarts }} restarts, giving up (exit code $code)" >&2
    exit $code
  fi
done
