"""Model families: one file or folder each, which defines ``MODEL``. Importing them does not import torch."""
