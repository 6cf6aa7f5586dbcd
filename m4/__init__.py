"""m4: multimodal, multitask mixture-of-experts on incomplete data."""

__version__ = "0.1.0"
