xpk workload create --cluster={{ cluster }} --zone={{ zone }} --workload={{ name }} \
  --docker-image={{ image }} --tpu-type={{ accelerator }} --num-slices={{ hosts.slices }} \
  --env=M4_COORDINATOR=auto --env=M4_HEARTBEAT={{ spec.heartbeat }} --max-restarts={{ restarts }} \
  --command={{ in_quotes }}
