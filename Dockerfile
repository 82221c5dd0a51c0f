# Limner's page and HTTP service, by default with the mini model on the CPU.
#   docker build -t limner .
#   docker run --rm -p 8000:8000 -v limner-cache:/cache limner
# On a machine without an NVIDIA GPU give pip the index of PyTorch's CPU builds, which saves several gigabytes:
#   docker build -t limner --build-arg PIP_EXTRA_INDEX_URL=... .
FROM python:3.11-slim

ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    LIMNER_CACHE=/cache/limner HF_HOME=/cache/huggingface HF_HUB_DISABLE_TELEMETRY=1

RUN useradd --create-home --uid 1000 limner && mkdir /cache && chown limner /cache

WORKDIR /app
COPY constraints.txt ./
RUN pip install torch -c constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install ".[serve]" -c constraints.txt

USER limner
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
ENTRYPOINT ["limner"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
