"""What runs inside a container beside the server."""
