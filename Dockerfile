# syntax=docker/dockerfile:1
#   docker build -t gguf-serve .
#   docker run --rm -p 8080:8080 -v "$PWD/models:/models:ro" gguf-serve -m /models/model.gguf
FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY gguf_serve gguf_serve
COPY server server
COPY engine engine
COPY kernels kernels
RUN pip install --no-cache-dir '.[cpu]' && rm -rf /src/*

# The home holds caches: compiled kernels and the demonstration model. An image for one model, of
# hosts of one kind, may hold them from the start, and run read-only:
#   COPY model.gguf /models/
#   RUN serve --compile-only -m /models/model.gguf    (as the user below)
RUN useradd --create-home --uid 1000 serve
USER serve
WORKDIR /home/serve
VOLUME /models
ENV LLAMA_ARG_HOST=0.0.0.0
EXPOSE 8080

# Green when the model is loaded and the engine runs; LLAMA_ARG_PORT, if set, is respected.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python", "-c", \
  "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('LLAMA_ARG_PORT', '8080') + '/health', timeout=4)"]

ENTRYPOINT ["serve"]
CMD ["--help"]
