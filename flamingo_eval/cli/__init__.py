"""The command line; thin: options to RunSpec to engine to report. Heavy imports happen inside commands."""
