# syntax=docker/dockerfile:1
# This image serves on NVIDIA GPUs, without torch. ONNX Runtime's CUDA provider uses CUDA 13 and cuDNN 9 from the
# base image:
#   docker build -f docker/gpu.Dockerfile -t trimtab/server:0.1.0-gpu .
#   docker run --gpus all --read-only --tmpfs /tmp -v ./models:/models:ro -p 8001:8001 trimtab/server:0.1.0-gpu \
#     serve --repository /models --grpc-address 0.0.0.0:8001
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM base AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client client
COPY server server
COPY exporters exporters
RUN python3 -m venv /opt/trimtab \
    && /opt/trimtab/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[gpu,auth,otel]'

FROM base
COPY --from=build /opt/trimtab /opt/trimtab
# Only /tmp is writable. HOME is there, so that the server can keep measured costs.
ENV PATH=/opt/trimtab/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The chart runs as the same user. It owns nothing in the image.
USER 10001:10001
EXPOSE 8001 8002 8003
ENTRYPOINT ["trimtab"]
CMD ["serve", "--repository", "/models"]
