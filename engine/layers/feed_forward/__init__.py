"""Feed-forward networks: dense, of experts, and RWKV's."""
