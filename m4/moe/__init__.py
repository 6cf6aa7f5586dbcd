"""Mixture-of-experts core: gates, routers, balance losses, experts, dispatch."""
