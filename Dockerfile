# syntax=docker/dockerfile:1
#   docker build -t gguf-serve .
#   docker run --rm -p 8080:8080 -v "$PWD/models:/models:ro" gguf-serve -m /models/model.gguf
# With --build-arg EXTRAS= it has no driver for processors, for a GPU's (compose.yaml).
FROM python:3.13-slim-trixie

WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY gguf_serve gguf_serve
COPY server server
COPY engine engine
COPY kernels kernels
ARG EXTRAS=[cpu]
# A wheel cannot hold links, so Intel's has libraries two and three times: 290 MiB of copies. Its
# plug-in for linkers (89 MiB) and debugging libraries are of no use here. NVIDIA's
# container toolkit brings the driver's library, but not the file that names it.
RUN pip install --no-cache-dir ".$EXTRAS" && rm -rf /src/* \
    && cd /usr/local/lib && rm -f icx-lto.so libtcm_debug.so* \
    && for copy in lib*.so lib*.so.*; do for whole in "$copy".*; do \
         if [ -f "$whole" ] && cmp -s "$copy" "$whole"; then ln -sf "$whole" "$copy"; fi; \
       done; done \
    && mkdir -p /etc/OpenCL/vendors && echo libnvidia-opencl.so.1 > /etc/OpenCL/vendors/nvidia.icd

# The home holds caches: compiled kernels and the demonstration model. An image for one model, of
# hosts of one kind, may hold them from the start, and run read-only:
#   COPY model.gguf /models/
#   RUN serve --compile-only -m /models/model.gguf    (as the user below)
# and with --cache-disk and --warmup-prompt a system prompt that is computed (docs/cache.md).
RUN useradd --create-home --uid 1000 serve
USER serve
WORKDIR /home/serve
VOLUME /models
ENV LLAMA_ARG_HOST=0.0.0.0
EXPOSE 8080

# Green when the model is loaded and the engine runs, wherever its options have it listen.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
  CMD ["python", "-m", "gguf_serve.server.container.health_check"]

ENTRYPOINT ["serve"]
CMD ["--help"]
