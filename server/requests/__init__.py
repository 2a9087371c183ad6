"""A request of any dialect: what it asks for, and how it is answered."""
