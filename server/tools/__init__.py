"""Tools that the server runs where somebody asks for them: its host's, and those of MCP servers."""
