#!/bin/sh
# curl on slurmgate: export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=...
set -eu

curl --silent --show-error --fail-with-body "$OPENAI_BASE_URL/models" -H "Authorization: Bearer $OPENAI_API_KEY"
echo

# --no-buffer shows each event when it comes
curl --silent --show-error --fail-with-body --no-buffer "$OPENAI_BASE_URL/chat/completions" \
  -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" -d '{
    "model": "slurmgate-guide",
    "messages": [{"role": "user", "content": "What happens at the wall time?"}],
    "stream": true
  }'

curl --silent --show-error --fail-with-body "$OPENAI_BASE_URL/embeddings" \
  -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json" -d '{
    "model": "slurmgate-embed",
    "input": ["a wall time", "a time limit"]
  }'
