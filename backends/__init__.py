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
                      `- ReplicaBackend  replicas.py a seat, an attempt; another one before the first byte:
                            |                           retries.py, retry_budget.py
                            |- Places    places.py   the seam to who knows the load of all replicas, see below
                            |- Dialect   dialects/   what an engine says differently, pure
                            |- Origins   origins.py  a pool for each engine, and whether anybody is there: health.py
                            |- Pool      transport.py   pooled HTTP/1.1 client; connection.py: one socket
                            |- EventFilter   sse.py  usage, errors and the end of a stream, pure
                            `- engine_error  engine_errors.py  an engine's error body -> ours, pure

    Places.take, wait --> Seat --leave--> Outcome
        |
        ModelPlaces   model_places.py   decides in this process; wants.py: a call as values, for others that ask it
            |- ReplicaSet   replica_set.py   what each has and may have: admission.py; in rotation or not: breaker.py;
            |                                which one is next: routing.py, affinity.py (all pure)
            |- Lending      loans.py         seats that other processes give out by themselves, where nothing is decided
            `- ModelQueue   model_queue.py   who waits, until when; whose turn: waiting_line.py; how long it takes:
                                             service_rate.py (both pure)

    engine_info.py   what an engine says of its own limits
    fixed.py    engines that run already: a launcher that launches nothing
    errors.py   the error tree; every error knows its HTTP status and its OpenAI type and code

Nothing here imports `proxy` or `slurm_launcher`. What replicas.py needs of a launcher is the `Launcher` protocol in
base.py; `proxy/app.py` joins the two.
"""
