# syntax=docker/dockerfile:1
# Two images, the same but for torch:
#
#   docker build --target cpu  -t luthier:cpu .
#   docker build --target cuda -t luthier:cuda .     # needs NVIDIA's container toolkit to run with --gpus all
#
# The first key, once:   docker run --rm -it -v luthier:/data luthier:cpu server prepare
# The server:            docker run -d -p 127.0.0.1:8520:8520 -v luthier:/data --stop-timeout 110 luthier:cpu   # docs/operations/containers.md

ARG PYTHON_IMAGE=python:3.13-slim-bookworm
ARG NODE_IMAGE=node:22-bookworm-slim

# What the pages load, built by Node as `make wheel` does.
FROM ${NODE_IMAGE} AS assets
WORKDIR /src/frontend
COPY frontend/package.json frontend/package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY frontend/ ./
RUN npm run build

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src/ src/
COPY --from=assets /src/src/luthier/platform/ui/vendor/ src/luthier/platform/ui/vendor/
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# A virtual environment for each kind of torch, which is copied whole into the last stages.
FROM ${PYTHON_IMAGE} AS environment
ENV PATH=/opt/luthier/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/luthier
COPY constraints.txt /src/constraints.txt
COPY --from=wheel /wheels/ /wheels/
# EXTRAS of Luthier (docs/install.md), and other PACKAGES such as adlfs. The file lets messages about missing ones show the right command.

FROM environment AS environment-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --index-url "${TORCH_INDEX}" "torch>=2.9"
ARG EXTRAS=postgresql,s3,otel,oidc,passkeys,gguf
ARG PACKAGES=
RUN pip install -c /src/constraints.txt "$(ls /wheels/luthier-*.whl)[${EXTRAS}]" ${PACKAGES} \
    && echo "--target cpu -t luthier:cpu --build-arg EXTRAS=${EXTRAS}" > /opt/luthier/image-options

FROM environment AS environment-cuda
# The wheels of the index bring CUDA's libraries. Without liger-kernel: Triton compiles at run time, and the last stage has no compiler.
RUN pip install "torch>=2.9"
ARG EXTRAS=postgresql,s3,otel,oidc,passkeys,gguf,nf4
ARG PACKAGES=
RUN pip install -c /src/constraints.txt "$(ls /wheels/luthier-*.whl)[${EXTRAS}]" ${PACKAGES} \
    && echo "--target cuda -t luthier:cuda --build-arg EXTRAS=${EXTRAS}" > /opt/luthier/image-options

# What both images share: no compiler, no package of the build, an account without rights, one folder that is written.
FROM ${PYTHON_IMAGE} AS runtime
# tini passes signals on and reaps the children of children; bubblewrap holds code that models write, libgomp1 is of torch.
# Without versions: the archive of a Debian release keeps the latest alone, so a build with pins soon finds none.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini bubblewrap libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 luthier \
    && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin luthier \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data
ENV PATH=/opt/luthier/bin:$PATH \
    LUTHIER_HOME=/data \
    LUTHIER_LOG_FORMAT=json \
    HF_HOME=/data/cache/huggingface \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8520
STOPSIGNAL SIGTERM
# Python in place of curl, which is not there, and past any HTTP_PROXY. A container that is only a worker turns it off: it answers no HTTP.
HEALTHCHECK --interval=15s --timeout=10s --start-period=90s --retries=4 \
    CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8520/healthz', timeout=8)"]
ENTRYPOINT ["tini", "--", "luthier"]
CMD ["server", "start", "--host", "0.0.0.0", "--port", "8520", "--workers", "1"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=environment-cuda /opt/luthier /opt/luthier

FROM runtime AS cpu
COPY --from=environment-cpu /opt/luthier /opt/luthier
