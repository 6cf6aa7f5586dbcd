"""M4oE (Wu et al., ICLR 2025)."""
