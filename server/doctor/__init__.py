"""What a person should know of the machine: ``serve doctor``, and notices at the start."""
