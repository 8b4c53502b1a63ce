#!/bin/sh
# What SageMaker starts: `serve` answers with the model that it mounted; anything else is run as it is.
set -eu
if [ "${1:-serve}" != serve ]; then
  exec "$@"
fi
set -- "serve.host=${GRAFT_SERVE_HOST:-0.0.0.0}" "serve.port=${SAGEMAKER_BIND_TO_PORT:-8080}"
# What an endpoint is told by its environment: GRAFT_SERVE_TOP_K=3 is serve.top_k=3.
for key in engine precision threads top_k mode queue deadline max_bytes max_pixels max_photos allow_url url_hosts; do
  eval "value=\${GRAFT_SERVE_$(echo "$key" | tr a-z A-Z):-}"
  if [ -n "$value" ]; then
    set -- "$@" "serve.$key=$value"
  fi
done
# In place of this shell, so that SIGTERM reaches the server, which then answers what is inside.
exec python -m serve local "bundle=${GRAFT_MODEL:-/opt/ml/model}" "$@"
