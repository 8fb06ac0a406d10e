# syntax=docker/dockerfile:1
# This image serves on CPUs, without torch:
#   docker build -f docker/cpu.Dockerfile -t trimtab/server:0.1.0 .
#   docker run --read-only --tmpfs /tmp -v ./models:/models:ro -p 8001:8001 trimtab/server:0.1.0 \
#     serve --repository /models --grpc-address 0.0.0.0:8001
FROM python:3.11-slim AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY client client
COPY server server
COPY exporters exporters
RUN python -m venv /opt/trimtab \
    && /opt/trimtab/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[server,openvino,auth,otel]'

FROM python:3.11-slim
COPY --from=build /opt/trimtab /opt/trimtab
# Only /tmp is writable. HOME is there, so that the server can keep measured costs.
ENV PATH=/opt/trimtab/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The chart runs as the same user. It owns nothing in the image.
USER 10001:10001
EXPOSE 8001 8002 8003
ENTRYPOINT ["trimtab"]
CMD ["serve", "--repository", "/models"]
