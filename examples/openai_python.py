"""The OpenAI SDK on slurmgate: pip install openai; export OPENAI_BASE_URL=.../v1 OPENAI_API_KEY=..."""

from openai import NotFoundError, OpenAI

client = OpenAI()  # reads both variables; or OpenAI(base_url=..., api_key=...)

print("models:", *(model.id for model in client.models.list()))

stream = client.chat.completions.create(
    model="slurmgate-guide",
    messages=[{"role": "user", "content": "What happens at the wall time?"}],
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    elif chunk.usage:
        print(f"\n{chunk.usage.total_tokens} tokens")

vectors = client.embeddings.create(model="slurmgate-embed", input=["a wall time", "a time limit"])
print("an embedding has", len(vectors.data[0].embedding), "numbers")

try:
    client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "Hello"}])
except NotFoundError as error:
    print(error.code, error.request_id)
