"""The APIs that are spoken: routes, bodies and answers of each."""
