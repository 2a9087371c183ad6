"""Model architectures: what differs is a row of a table, what computes is one decoder."""
