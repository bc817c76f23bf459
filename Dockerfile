# The image that --engine gke runs (docs/pods.md):
#   docker build --tag REGISTRY/segjax . && docker push REGISTRY/segjax
# For GPUs: --build-arg EXTRA=cuda,gcs; for a CPU alone: --build-arg EXTRA=gcs.
FROM python:3.12-slim
ARG EXTRA=tpu,gcs
WORKDIR /segjax
# Requirements first: a change of the code does not install them again.
COPY setup.py README.md ./
RUN mkdir segjax experiments && touch segjax/__init__.py experiments/__init__.py \
    && pip install --no-cache-dir --editable ".[$EXTRA]"
COPY . .
