"""Data room: raw files -> records -> batches. NumPy only; nothing here touches a device."""
