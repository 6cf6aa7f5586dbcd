"""FlexCare (Xu et al., KDD 2024)."""
