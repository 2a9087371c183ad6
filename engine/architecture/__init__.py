"""What an architecture is: the table, a file's numbers, the tensors it must have."""
