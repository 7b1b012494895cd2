"""The command line: thin commands that turn options into a RunSpec, run the engine and print a report.

Heavy imports happen inside commands.
"""
