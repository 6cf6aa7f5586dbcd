"""The page that ends a run."""
