"""Records, protocols, settings and rules: no plug-in, no torch."""
