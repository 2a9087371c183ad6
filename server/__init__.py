"""HTTP and the command line: JSON in, JSON out. Knows no tensor."""
