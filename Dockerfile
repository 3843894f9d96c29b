# The machine of a run: pinned CUDA base, Ubuntu's Python 3.12, the packages of the hashed lock, the code.
#
#   make image                           # or: docker build --tag coder-agent .
#   make image DEVICE=cpu                # ... without CUDA's libraries
#   make repro IN=container              # any target that runs something, in the image, on this checkout
#   make shell                           # a shell there
#   make health IN=container             # versions and device; ends with 1 where something is missing
#
# What `IN=container` says to the engine: the checkout is mounted over /workspace, so that results, cache and
# dvc.lock stay in it; the user is you; a named volume keeps what comes from the Hub. By hand:
#
#   docker run --rm --init --gpus all --user "$(id -u):$(id -g)" \
#     --volume "$PWD:/workspace" --volume coder-agent-hub:/var/cache/hub coder-agent dvc repro
#
# A DVC cache that checkouts share is mounted where each has its own: --volume /big/cache:/workspace/.dvc/cache.
# No token is needed to build. To run with one, hand over its name, never its value: --env HF_TOKEN takes it
# from your environment, or mount a file and name it: --env HF_TOKEN_PATH=/run/secrets/hf_token. Without a
# mounted checkout the image runs the code that it was built from, and its results go with the container; what
# needs git (`dvc exp run`, diffs) needs the mount.
#
# One base alone: the lock's torch is built for CUDA 13.0 and brings its libraries, so a base of CUDA 12.8 would
# change nothing. It needs a driver of the 580 series or newer.
# There is no HEALTHCHECK: it would import torch beside a training run, again and again.

FROM docker.io/nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04@sha256:14d94b039cb94bbd5da559f303b46bc4b0d5d6c24ab1a9d7b186e566ed3400dc

# git: DVC's experiments and diffs. nodejs: runs answers in JavaScript, in the sandbox. gcc and the headers:
# Triton compiles a small launcher on its first use of the GPU, and TRL's loss is a Triton kernel there.
# One layer, so that the package lists are in none.
# Versions: the digest above pins the release, and Ubuntu's archive drops old builds, so a pinned
# version would soon stop this file from building instead of making it repeatable.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates gcc git libc6-dev make nodejs python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The slow layer, before the code: it is built again only when a lock changes. The environment lies outside
# /workspace, where a mount would hide it, and belongs to root, so that no run can change it.
# The locks name every package with its hashes: pip has nothing to resolve and takes nothing else. One of
# them comes as source only (antlr4-python3-runtime), so the locked setuptools goes in first: in an isolated
# build pip would fetch one of its own choice, unhashed.
ARG LOCKS="requirements.lock"
ARG TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"
ENV PATH=/usr/local/venv/bin:$PATH
WORKDIR /workspace
COPY requirements*.lock ./
RUN python3 -m venv /usr/local/venv \
    && sed -n '/^setuptools==/,/# via/p' requirements.lock > /tmp/setuptools.lock \
    && for lock in /tmp/setuptools.lock $LOCKS; do \
        case "$lock" in *-cpu-torch.lock) index="$TORCH_CPU_INDEX" ;; *) index="" ;; esac; \
        pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation \
            --require-hashes ${index:+--extra-index-url "$index"} --requirement "$lock" || exit 1; \
    done \
    && rm /tmp/setuptools.lock

# HOME and USER are set here because a user id given with `--user` has no entry in /etc/passwd, and DVC and
# torch ask for both. LD_LIBRARY_PATH leaves only the driver's folders: torch brings the CUDA libraries
# of the lock, and the base's own, of another version, must not come before them. IN tells the Makefile that
# the environment is the image's, not a .venv.
ENV HOME=/home/ubuntu \
    IN=image \
    USER=ubuntu \
    HF_HOME=/var/cache/hub \
    LANG=C.UTF-8 \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# `ubuntu` (1000:1000) comes with Ubuntu's image. Home and Hub cache take any user id, as /tmp does.
# git refuses to read a mounted checkout of another user (Docker Desktop shows such) unless told to.
RUN install --directory --owner=1000 --group=1000 /workspace \
    && install --directory --owner=1000 --group=1000 --mode=1777 /home/ubuntu /var/cache/hub \
    && git config --system --add safe.directory /workspace

# .dockerignore lets through only code, configuration and hand-written data.
COPY --chown=1000:1000 . .

# By number, so that Kubernetes can see that it is not root.
USER 1000:1000

# The image has no .git, without which DVC refuses to start. This file says to go on without; a mounted
# checkout hides it, and git works there as usual.
RUN dvc config --local core.no_scm true

# The version is pyproject.toml's; unset, the one of Ubuntu's image would show here.
LABEL org.opencontainers.image.title="coder-agent" \
      org.opencontainers.image.description="Fine-tunes a small code model into a security-aware assistant and proves it against the base model" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.base.name="docker.io/nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04"

# The base's entry point prints a banner to stdout, which would spoil `dvc metrics show --json > file`.
ENTRYPOINT []
CMD ["dvc", "repro"]
