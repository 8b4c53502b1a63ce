#!/bin/sh
# What SageMaker starts: `serve` answers with the model that it mounted; anything else is run as it is.
set -eu
if [ "${1:-serve}" != serve ]; then
  exec "$@"
fi
# In place of this shell, so that SIGTERM reaches the server, which then answers what is inside.
exec python -m serve local "bundle=${GRAFT_MODEL:-/opt/ml/model}" serve.host=0.0.0.0 \
  "serve.port=${SAGEMAKER_BIND_TO_PORT:-8080}" "serve.mode=${GRAFT_SERVE_MODE:-latency}"
