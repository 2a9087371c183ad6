"""From a file and options to an engine's parts."""
