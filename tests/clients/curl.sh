#!/usr/bin/env bash
# curl: what openai_python.py does, with the same line of JSON at the end (python3 puts it together).
set -euo pipefail
question='"messages": [{"role": "user", "content": "What is slurmgate?"}]'
texts='"input": ["What is slurmgate?", "Tell me what slurmgate is", "How do I cancel a job?"]'
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# NAME PATH [BODY]: status and headers into NAME.head, the body into NAME
ask() {
  local body=()
  [ $# = 2 ] || body=(--header "Content-Type: application/json" --data "$3")
  curl --silent --no-buffer --max-time 60 --dump-header "$out/$1.head" --output "$out/$1" \
    --header "Authorization: Bearer ${KEY:-$OPENAI_API_KEY}" "${body[@]}" "${URL:-$OPENAI_BASE_URL}$2"
}

ask chat /chat/completions '{"model": "slurmgate-guide", '"$question"'}'
ask stream /chat/completions '{"model": "slurmgate-guide", "stream": true, '"$question"'}'
ask stream_usage /chat/completions \
  '{"model": "slurmgate-guide", "stream": true, "stream_options": {"include_usage": true}, '"$question"'}'
ask completion /completions '{"model": "slurmgate-guide", "prompt": "slurmgate is", "max_tokens": 8}'
ask completion_stream /completions '{"model": "slurmgate-guide", "prompt": "slurmgate is", "max_tokens": 8, "stream": true}'
ask embeddings /embeddings '{"model": "slurmgate-embed", '"$texts"'}'
ask embeddings_base64 /embeddings '{"model": "slurmgate-embed", "encoding_format": "base64", '"$texts"'}'
ask models /models
ask model /models/slurmgate-guide
ask error_model /chat/completions '{"model": "nobody/knows-it", '"$question"'}'
ask error_retrieve /models/nobody/knows-it
KEY=sk-wrong ask error_key /chat/completions '{"model": "slurmgate-guide", '"$question"'}'
ask error_field /chat/completions '{"model": "slurmgate-guide"}'
ask error_stream /chat/completions '{"model": "gone", "stream": true, '"$question"'}'

# head leaves after three events; curl then cannot write, and ends
curl --silent --no-buffer --max-time 60 --dump-header "$out/cancelled.head" \
  --header "Authorization: Bearer $TOOLS_API_KEY" --header "Content-Type: application/json" \
  --data '{"model": "talks-on", "stream": true, '"$question"'}' \
  "$TOOLS_BASE_URL/chat/completions" | grep --line-buffered '^data: ' | head -n 3 >"$out/cancelled" || true

function='"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}'
URL=$TOOLS_BASE_URL KEY=$TOOLS_API_KEY ask tools /chat/completions '{
  "model": "calls-tools",
  "messages": [{"role": "user", "content": "What is it like in Oslo?"}],
  "tools": [
    {"type": "function", "function": {"name": "weather", '"$function"'}},
    {"type": "function", "function": {"name": "time_in", '"$function"'}}
  ]
}'

exec python3 - "$out" <<'PYTHON'
import base64, json, pathlib, struct, subprocess, sys

out = pathlib.Path(sys.argv[1])


def load(name):
    return json.loads((out / name).read_text())


def header(name, field):
    lines = (out / f"{name}.head").read_text().splitlines()
    return next(line.split(": ", 1)[1] for line in lines if line.lower().startswith(f"{field}: "))


def events(name):
    lines = [line[6:] for line in (out / name).read_text().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines
    return [json.loads(line) for line in lines[:-1]]


def stream(name):
    chunks = events(name)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return {
        "text": "".join(choice["delta"].get("content") or "" for choice in choices),
        "finish": choices[-1]["finish_reason"],
        "usages": [chunk.get("usage") for chunk in chunks],
        "without_choices": sum(not chunk["choices"] for chunk in chunks),
    }


def error(name):
    body = load(f"error_{name}")["error"]
    status = int((out / f"error_{name}.head").read_text().split()[1])
    return [None, status, body["type"], body["param"], body["code"]]


chat, completion, floats = load("chat"), load("completion"), load("embeddings")
decoded = [base64.b64decode(one["embedding"]) for one in load("embeddings_base64")["data"]]
vectors = [struct.unpack(f"<{len(one) // 4}f", one) for one in decoded]
pairs = [pair for x, y in zip(vectors, floats["data"]) for pair in zip(x, y["embedding"])]
calls = load("tools")["choices"][0]["message"]["tool_calls"]
version = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
seen = {
    "version": version,
    "chat": {
        "text": chat["choices"][0]["message"]["content"],
        "finish": chat["choices"][0]["finish_reason"],
        "model": chat["model"],
        "usage": chat["usage"],
        "request_id": header("chat", "x-request-id"),
        "same_request_id": True,
    },
    "stream": stream("stream"),
    "stream_usage": stream("stream_usage"),
    "completion": {
        "text": completion["choices"][0]["text"],
        "streamed": "".join(chunk["choices"][0]["text"] for chunk in events("completion_stream") if chunk["choices"]),
        "usage": completion["usage"],
    },
    "embeddings": {
        "widths": [len(one) for one in vectors],
        "indices": [one["index"] for one in floats["data"]],
        "same": all(abs(a - b) < 1e-6 for a, b in pairs),
        "usage": floats["usage"],
    },
    "models": [model["id"] for model in load("models")["data"]],
    "model": load("model")["id"],
    "errors": {name: error(name) for name in ("model", "retrieve", "key", "field", "stream")},
    "cancelled": {
        "chunks": len((out / "cancelled").read_text().splitlines()),
        "request_id": header("cancelled", "x-request-id"),
    },
    "tools": {"plain": [[call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])] for call in calls]},
}
print(json.dumps(seen))
PYTHON
