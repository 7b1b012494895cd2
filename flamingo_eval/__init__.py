"""Few-shot evaluation of OpenFlamingo-style vision-language checkpoints."""

__version__ = "0.1.0"
