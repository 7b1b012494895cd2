"""What a run keeps, and how: folders, journals, vectors, locks."""
