#!/bin/sh
# What the container runs: server | balanced | serverless | pod | host, a verb of the `letterpress` command, or any program.
# Each replaces this shell, so that a signal reaches it.
set -eu

say() { printf 'letterpress: %s\n' "$*" >&2; }
die() { say "$@"; exit 78; } # sysexits.h: EX_CONFIG, as the worker itself

# As the worker's user, whoever we are.
as_worker() {
  if [ "$(id -u)" = 0 ]; then
    exec setpriv --reuid letterpress --regid letterpress --init-groups --inh-caps=-all --bounding-set=-all \
      --no-new-privs -- env HOME=/home/letterpress USER=letterpress "$@"
  fi
  exec "$@"
}

# A folder that outlives the container, where there is one: RunPod mounts pods' volumes at /workspace.
volume() {
  if [ -n "${LETTERPRESS_VOLUME:-}" ]; then printf '%s' "$LETTERPRESS_VOLUME"
  elif [ -d /workspace ]; then printf '%s' /workspace/letterpress
  else printf '%s' /cache/letterpress-pod; fi
}

start_sshd() {
  [ "$(id -u)" = 0 ] || die "pod: sshd needs root; build the image with --target pod, or run this one with --user root"
  [ -n "${PUBLIC_KEY:-}" ] || die "pod: PUBLIC_KEY is empty; it holds the OpenSSH public key that may log in"
  keys=$1/ssh
  install -d -m 0700 "$keys" /root/.ssh
  # Drawn once a volume: whoever pinned the key meets the same one after a restart.
  [ -s "$keys/ssh_host_ed25519_key" ] || ssh-keygen -q -t ed25519 -N '' -C letterpress -f "$keys/ssh_host_ed25519_key"
  chmod 0600 "$keys/ssh_host_ed25519_key"
  # A container that is started again still lets the tunnel services in that a deploy has told it of.
  tunnels=$(grep ' letterpress-tunnel-[a-z0-9]*$' /root/.ssh/authorized_keys 2>/dev/null || :)
  printf '%s\n' "$PUBLIC_KEY" ${tunnels:+"$tunnels"} >/root/.ssh/authorized_keys
  chmod 0600 /root/.ssh/authorized_keys
  mkdir -p /run/sshd
  # -D under our own background: its messages go where the container's do. Whoever logs in finds the image's programs.
  /usr/sbin/sshd -D -e -f /etc/ssh/letterpress_sshd_config -o "HostKey=$keys/ssh_host_ed25519_key" \
    -o "Port=${LETTERPRESS_SSH_PORT:-22}" -o "SetEnv=PATH=$PATH PYTHONPATH=${PYTHONPATH:-}" &
  say "sshd listens on port ${LETTERPRESS_SSH_PORT:-22}; host key $(ssh-keygen -lf "$keys/ssh_host_ed25519_key.pub" | cut -d' ' -f2)"
}

# The worker's bearer token, drawn once: whoever may log in may read it.
worker_token() {
  if [ -z "${LETTERPRESS_WORKER_TOKEN_FILE:-}" ]; then
    LETTERPRESS_WORKER_TOKEN_FILE=$1/worker-token
    if [ ! -s "$LETTERPRESS_WORKER_TOKEN_FILE" ]; then
      (umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$LETTERPRESS_WORKER_TOKEN_FILE.new")
      mv "$LETTERPRESS_WORKER_TOKEN_FILE.new" "$LETTERPRESS_WORKER_TOKEN_FILE"
    fi
    chown letterpress "$LETTERPRESS_WORKER_TOKEN_FILE"
    export LETTERPRESS_WORKER_TOKEN_FILE
    say "the worker's token is in $LETTERPRESS_WORKER_TOKEN_FILE"
  fi
}

case ${1:-server} in
  server) as_worker python3 -m worker ;;
  balanced)
    # A load-balancing endpoint: RunPod names the port that its balancer asks.
    export LETTERPRESS_WORKER_BALANCED=true LETTERPRESS_WORKER_HOST=0.0.0.0 LETTERPRESS_WORKER_PORT="${PORT:-8100}"
    as_worker python3 -m worker
    ;;
  serverless)
    shift
    as_worker python3 -m worker.serverless "$@"
    ;;
  pod)
    kept=$(volume)
    install -d -m 0755 "$kept"
    start_sshd "$kept"
    worker_token "$kept"
    if [ -d /workspace ] && [ -z "${HF_HUB_CACHE:-}" ]; then
      # Weights outlive the container too.
      install -d -o letterpress "$kept/huggingface"
      export HF_HOME="$kept/huggingface"
    fi
    if [ -d /workspace ] && [ "${LETTERPRESS_WORKER_CACHE_DIR:-/cache/letterpress}" = /cache/letterpress ]; then
      # So do the kernels that were built for them, and the yes to their licence.
      install -d -o letterpress "$kept/letterpress"
      export LETTERPRESS_WORKER_CACHE_DIR="$kept/letterpress"
    fi
    unset PUBLIC_KEY
    as_worker python3 -m worker
    ;;
  host)
    # A pod whose workers `letterpress deploy` starts and keeps: sshd, and what was kept before a restart.
    kept=$(volume)
    install -d -m 0755 "$kept"
    start_sshd "$kept"
    unset PUBLIC_KEY
    for keeper in /var/lib/letterpress/*/keep.py; do
      [ ! -e "$keeper" ] || python3 "$keeper" boot "$(dirname "$keeper")/units"
    done
    wait
    ;;
  weights) as_worker letterpress "$@" ;;
  *) exec "$@" ;;
esac
