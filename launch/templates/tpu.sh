#!/bin/bash
# {{ name }}: m4 on all hosts of a TPU slice, as a queued resource. Rendered by launch/render.py.
# Needs m4 on the machines' image, or an installation step before the last command.
set -euo pipefail
cleanup() { gcloud compute tpus queued-resources delete {{ name }} --zone={{ zone }} --force --quiet; }
trap cleanup EXIT
gcloud compute tpus queued-resources create {{ name }} --node-id={{ name }} --zone={{ zone }} \
  --accelerator-type={{ accelerator }} --runtime-version={{ runtime }}{{ " --spot" if spot }}
until [ "$(gcloud compute tpus queued-resources describe {{ name }} --zone={{ zone }} \
  --format='value(state.state)')" = ACTIVE ]; do sleep 30; done
gcloud compute tpus tpu-vm ssh {{ name }} --zone={{ zone }} --worker=all \
  --command={{ remote }}
