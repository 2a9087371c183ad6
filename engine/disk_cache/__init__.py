"""KV pages in a folder, across restarts: names, files, what is kept. No model, no device."""
