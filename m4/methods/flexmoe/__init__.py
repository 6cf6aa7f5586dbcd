"""Flex-MoE (Yun et al., NeurIPS 2024)."""
