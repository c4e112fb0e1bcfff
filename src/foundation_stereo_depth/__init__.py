"""Train, check and watch stereo depth with per-pixel uncertainty. Importing this package imports nothing else."""

__version__ = "0.1.0"
