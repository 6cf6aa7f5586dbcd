"""The authors' PyTorch checkpoints, into m4 and back; see docs/interop.md."""
