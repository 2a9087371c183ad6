"""Speech: whose voice it is, what is to be said, and how it is sent."""
