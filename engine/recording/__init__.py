"""What layers are written in: weights of a file, rows, verbs, and the launches that they record."""
