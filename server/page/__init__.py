"""The chat page: its files, and what the server does for it."""
