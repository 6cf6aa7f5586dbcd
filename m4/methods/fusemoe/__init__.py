"""FuseMoE (Han et al., NeurIPS 2024)."""
