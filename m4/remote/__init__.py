"""Work directories in a bucket: `--workdir=gs://bucket/run`.

States are written into the bucket and read from it, by every process its own parts
(`m4.train.checkpoint`). All else is small: it is written on this machine, in a folder that stands
for the bucket's (`places`), and brought there when a state has been or the command ends (`mirror`).
What is in the bucket counts: a command begins with what is there. One run has it at a time
(`m4.train.lease`).
"""
