# syntax=docker/dockerfile:1
#
#   docker build --target service -t chorale-service .
#   docker build --target worker  -t chorale-worker .
#
# A worker for NVIDIA GPUs stands on another base; torch's own wheels bring the rest of CUDA:
#
#   docker build --target worker -t chorale-worker:cuda \
#     --build-arg WORKER_BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#
# Without a GPU an index with CPU-only wheels, given as TORCH_INDEX, makes the image some 4 GB smaller.

ARG PYTHON_BASE=python:3.12-slim-bookworm
ARG WORKER_BASE=python:3.12-slim-bookworm

# ---- service: the API, without torch and without the worker's code
FROM ${PYTHON_BASE} AS service-build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
RUN python3 -m venv /opt/chorale
ENV PATH=/opt/chorale/bin:$PATH
COPY pyproject.toml README.md LICENSE ./
COPY api_schemas api_schemas
COPY chorale chorale
COPY service service
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip pip install '.[service]'

FROM ${PYTHON_BASE} AS service
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin chorale
COPY --from=service-build /opt/chorale /opt/chorale
COPY deploy/health/service.py /home/chorale/health.py
COPY deploy/health/webhooks.py /home/chorale/webhooks_health.py
RUN install -d -o 10001 -g 10001 /work
ENV PATH=/opt/chorale/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CHORALE_WORK_DIR=/work \
    CHORALE_HOST=0.0.0.0 \
    CHORALE_PORT=8000
USER 10001
WORKDIR /home/chorale
VOLUME ["/work"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python3", "health.py"]
CMD ["chorale", "serve"]

# ---- worker: a model and the loop around it
FROM ${WORKER_BASE} AS worker-base
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# CUDA images come without Python.
# hadolint ignore=DL3008
RUN if ! command -v python3 >/dev/null; then \
      apt-get update; \
      apt-get install -y --no-install-recommends python3 python3-venv; \
      rm -rf /var/lib/apt/lists/*; \
    fi

FROM worker-base AS worker-build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
WORKDIR /src
RUN python3 -m venv /opt/chorale
ENV PATH=/opt/chorale/bin:$PATH
# First and alone, so that what follows cannot choose another build, and is built again without it.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
COPY pyproject.toml README.md LICENSE ./
COPY api_schemas api_schemas
COPY chorale chorale
COPY provenance provenance
COPY worker worker
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip pip install '.[worker]'

FROM worker-base AS worker
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin chorale \
    && install -d -o 10001 -g 10001 /work /hub
COPY --from=worker-build /opt/chorale /opt/chorale
COPY deploy/health/worker.py /opt/chorale/health.py
ENV PATH=/opt/chorale/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CHORALE_WORK_DIR=/work \
    HF_HOME=/hub
ENV TORCHINDUCTOR_CACHE_DIR=$CHORALE_WORK_DIR/compiled
USER 10001
# Not the home, over which something else may be mounted.
WORKDIR /opt/chorale
VOLUME ["/work", "/hub"]
STOPSIGNAL SIGTERM
# Reading a large model may take minutes.
HEALTHCHECK --interval=15s --timeout=10s --start-period=10m CMD ["python3", "health.py"]
CMD ["chorale", "worker"]
