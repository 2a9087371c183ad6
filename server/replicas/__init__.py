"""Engines in other processes, and on other machines, behind one server."""
