"""Ways to an answer: everything behind a model name.

    Call --> Backend.run --> Reply | EventStream     base.py      the seam: one verb and a close
                |
                +-- FallbackBackend   fallback.py    another model answers when the one asked cannot
                +-- HostedBackend     hosted.py      a provider's, by litellm (lazy); hosted_shapes.py, hosted_errors.py
                +-- a plugin's        plugins.py     from the entry points `slurmgate.backends` and `slurmgate.dialects`
                |
                +-- Composed          compose.py     one model's replicas, and around them what its engine needs:
                      |- Fanout       fanout.py      n choices from an engine that gives one; together.py
                      |- Embeddings   embeddings.py  token ids, batches, base64, dimensions; cl100k.py
                      |- Rerank, Tokenize            rerank.py, tokenize.py
                      `- ReplicaBackend  replicas.py fewest in flight, another replica before the first byte
                            |- Dialect   dialects/   what an engine says differently, pure
                            |- Pool      transport.py   pooled HTTP/1.1 client; connection.py: one socket
                            |- EventFilter   sse.py  usage, errors and the end of a stream, pure
                            `- engine_error  engine_errors.py  an engine's error body -> ours, pure

    fixed.py    engines that run already: a launcher that launches nothing
    errors.py   the error tree; every error knows its HTTP status and its OpenAI type and code

Nothing here imports `proxy` or `slurm_launcher`. What replicas.py needs of a launcher is the `Launcher` protocol in
base.py; `proxy/app.py` joins the two.
"""
