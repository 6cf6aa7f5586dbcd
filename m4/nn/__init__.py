"""Shared neural building blocks: attention, time encoders, fusion, heads."""
