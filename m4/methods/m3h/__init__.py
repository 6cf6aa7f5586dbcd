"""M3H (Bertsimas and Ma, 2024)."""
