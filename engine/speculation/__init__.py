"""Speculation: tokens that are guessed, verified in one step, and kept where they are right."""
