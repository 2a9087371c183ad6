"""The syntaxes of tool calls, a module for each family, and the table that chooses."""
