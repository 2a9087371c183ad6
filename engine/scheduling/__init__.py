"""Who is computed when, and what stays in the cache: integers and lists only."""
