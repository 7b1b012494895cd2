"""Records, protocols, settings and rules; contains no plug-in and needs no torch."""
