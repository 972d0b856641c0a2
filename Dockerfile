# The services in a container. One image has both; SERVICE says which one runs.
#
#     docker build --target cpu --tag flux-api:cpu .
#     docker build --target cuda --tag flux-api:cuda .
#
# docs/containers.md has the rest. The base is pinned by its tag; for the same bytes at every build name its digest
# besides: --build-arg BASE=debian:12.13-slim@sha256:...
ARG BASE=debian:12.13-slim


FROM ${BASE} AS base
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Debian's Python here is 3.11, the oldest that is supported and the one that the tests run with.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app


# What is needed to install stays behind in these stages.
FROM base AS builder
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY requirements requirements
COPY scripts/setup_env.sh scripts/setup_env.sh
ENV PIP_NO_CACHE_DIR=1

# With hashes, as everywhere. WITH=--fleet adds Ray, for SERVICE=fleet. Of equal versions pip takes torch's CPU build.
FROM builder AS packages-cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
ARG WITH
RUN PIP_EXTRA_INDEX_URL="${TORCH_CPU_INDEX}" scripts/setup_env.sh ${WITH:+"${WITH}"} \
    && .venv/bin/python -m pip uninstall --quiet --yes pip

FROM builder AS packages-cuda
ARG WITH
RUN scripts/setup_env.sh ${WITH:+"${WITH}"} \
    && .venv/bin/python -m pip uninstall --quiet --yes pip


# All but the packages and the code: those come last, because they change most.
FROM base AS service
RUN groupadd --gid 10001 flux \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin flux \
    && mkdir -p data generated_images logs models_cache uploads/lora_files \
    && chown -R flux:flux data generated_images logs models_cache uploads
ENV PATH="/app/.venv/bin:${PATH}" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    SERVICE=bf16 \
    FLUX_HOST=0.0.0.0
EXPOSE 8000 8001 8002
VOLUME ["/app/data", "/app/generated_images", "/app/logs", "/app/models_cache", "/app/uploads/lora_files"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["/app/.venv/bin/python", "-m", "scripts.containers.healthy"]
# tini ends what a worker leaves behind and hands signals on.
ENTRYPOINT ["/usr/bin/tini", "--", "/app/scripts/containers/run.sh"]


FROM service AS cpu
COPY --from=packages-cpu /app/.venv .venv
COPY . .
# The user of the services can read all of it, whatever the umask was where it came from, and changes none of it.
RUN find . -path ./.venv -prune -o ! -perm -o=r -exec chmod a+rX {} + \
    && python3 -m compileall -q api cli config fleet models scripts utils
USER 10001:10001


FROM service AS cuda
# Not left out: Triton, which compiles the FP4 kernels at their first use, compiles a few lines of C for each.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
# The driver's libraries are put in by NVIDIA's container toolkit. Compiled kernels are kept with the models: under /tmp,
# where compose lets nothing be run, they could not be loaded.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TORCHINDUCTOR_CACHE_DIR=/app/models_cache/.compiled \
    TRITON_CACHE_DIR=/app/models_cache/.compiled/triton
COPY --from=packages-cuda /app/.venv .venv
COPY . .
RUN find . -path ./.venv -prune -o ! -perm -o=r -exec chmod a+rX {} + \
    && python3 -m compileall -q api cli config fleet models scripts utils
USER 10001:10001
