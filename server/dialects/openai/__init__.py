"""OpenAI's chat completions, completions and transcriptions."""
