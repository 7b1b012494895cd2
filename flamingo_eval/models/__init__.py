"""Models; one file or folder each, with the name ``MODEL`` in it. Importing them does not import torch."""
