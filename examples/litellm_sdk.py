"""litellm's SDK on slurmgate: pip install litellm; export OPENAI_BASE_URL=.../v1 OPENAI_API_KEY=..."""

import litellm

# "openai/" names the protocol, what follows is the model's name at the gateway
answer = litellm.completion(
    model="openai/slurmgate-guide", messages=[{"role": "user", "content": "What happens at the wall time?"}]
)
print(answer.choices[0].message.content)
print(answer.usage.total_tokens, "tokens")

vectors = litellm.embedding(model="openai/slurmgate-embed", input=["a wall time", "a time limit"])
print("an embedding has", len(vectors.data[0]["embedding"]), "numbers")
