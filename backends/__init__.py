"""Ways to an answer: everything behind a model name.

    Call --> Backend.run --> Reply          base.py        the seam: one verb and a close
                |
                +-- ReplicaBackend          replicas.py    engines that slurmgate started, or that run at given URLs:
                |      |                                   fewest in flight, another one before the first byte
                |      +-- Pool             transport.py   thin pooled HTTP/1.1 client (httptools, asyncio.Protocol)
                |      +-- EventFilter      sse.py         usage, errors and the end of a stream (pure)
                |      +-- engine_error     engine_errors.py   an engine's error body -> ours (pure)
                |
                +-- (hosted models by litellm, tribunal: later)

    errors.py   the error tree; every error knows its HTTP status and its OpenAI type and code

Nothing here imports `proxy` or `slurm_launcher`. What replicas.py needs of a launcher is the `Launcher` protocol in
base.py; `proxy/app.py` joins the two.
"""
