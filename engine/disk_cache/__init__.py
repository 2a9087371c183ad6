"""KV pages in a folder, across restarts, or in the host's memory: names, files, what is kept. No
model, no device."""
