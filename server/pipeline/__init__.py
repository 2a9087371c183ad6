"""A model whose layers are shared out to several processes: connections, and where they run."""
