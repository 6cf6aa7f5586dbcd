"""m4: multimodal, multitask mixture-of-experts on incomplete data."""

__version__ = "0.1.0"
USE = "research use only; not a medical device"  # said in every file that leaves m4
