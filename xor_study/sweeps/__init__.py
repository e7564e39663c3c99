"""From a command line to a table of runs, and from the table to files that survive."""
