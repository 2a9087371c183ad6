"""The rows of the table of architectures, by the kind of their layers."""
